"""Command package: the deploy folder of any student or exported file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import JsonValue, ValidationError

from compress.data.prepared import PreparedData, load_prepared
from compress.deploy import TRITON, DeployOptions, find_float_source, write_deploy_folder
from compress.errors import ArtifactError, SelectionError
from compress.files import read_json
from compress.load_record import LoadRecord
from compress.model_card import DeployFacts
from compress.predictions import preprocessing_of
from compress.runtime import OnnxPredictor, load_predictor
from compress.select import FLOAT32, label
from compress.verify import MODEL, verify_deploy
from pipelines.deploy_folder import NUM_EXAMPLES, Extras, data_in_words, runtime_versions, write_package
from pipelines.layout import Layout
from pipelines.samples import sample_images


def run(
    root: Path, what: str | None, *, output: Path | None, triton: bool = False, load_test: Path | None = None
) -> Path:
    """Write the deploy folder of a student (`NAME` or `NAME/FORM`), by default the champion, or of a file by its path.

    By default below `packages/`: `deploy/` is the select stage's output, and DVC would undo a change to it.
    `load_test` is what `python -m benchmarks.serve.load_test --output` wrote, for the model card.

    Raises:
        SelectionError: there is no such student or form.
        ArtifactError: files are missing, damaged, or not those that were measured.
    """
    layout = Layout(root)
    extras = Extras(triton=triton, serving=None if load_test is None else read_load_test(load_test))
    if what is not None and what.endswith(".onnx"):
        path = Path(what)
        folder = output or layout.package(path.stem)
        _write_file(layout, path, folder=folder, extras=extras)
        return folder
    table = read_json(layout.table, made_by="select")
    row = _find_row(table, what)
    folder = output or layout.package(label(row["name"], row["form"]).replace("/", "_"))
    reason = table["reason"] if row["champion"] else f"asked for by name; it is not the champion: {row['reason']}"
    write_package(layout, row, reason=reason, teacher=table["teacher"], folder=folder, extras=extras)
    return folder


def read_load_test(path: Path) -> LoadRecord:
    """The record of a load test.

    Raises:
        ArtifactError: it is missing, damaged, changed, or its numbers contradict each other.
    """
    try:
        return LoadRecord.model_validate(read_json(path, made_by="load test"))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ArtifactError(
            f"{path} is no record of a load test: {place + ': ' if place else ''}{first['msg']}; run it again"
        ) from error


def described(folder: Path) -> str:
    """One line for people: what was written, and what its bytes are spent on."""
    verified = verify_deploy(folder)
    sizes = {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    copies = list((folder / TRITON).glob(f"*/1/{MODEL}"))
    told = f"{folder} is written and verified: model {verified.sha256[:12]}, {sum(sizes.values()) / 1e6:.3f} MB in all"
    if not copies:
        return told
    return (
        f"{told}; {copies[0].relative_to(folder)} is a second copy of {MODEL} ({copies[0].stat().st_size / 1e6:.3f} MB)"
    )


def _find_row(table: dict[str, Any], asked: str | None) -> dict[str, Any]:
    """The row of the champion, or of a student's file by its label; without a form it is the float32 file."""
    rows = {label(row["name"], row["form"]): row for row in table["students"]}
    found = next((row for row in rows.values() if row["champion"]), None) if asked is None else rows.get(asked)
    if found is None:
        missing = "there is no champion" if asked is None else f"no {asked} in the table of students"
        raise SelectionError(f"{missing}; name one of {', '.join(rows)}, or the path of an .onnx file")
    return found


def _write_file(layout: Layout, path: Path, *, folder: Path, extras: Extras) -> None:
    """Write the folder of a file of which only its own metadata is known."""
    predictor = load_predictor(path)
    data = load_prepared(layout.prepared)
    if data.manifest.preprocessing != preprocessing_of(path, predictor):
        raise ArtifactError(
            f"{path} takes other images than those in {layout.prepared}, of which the golden ones are taken; package "
            "it in the project that made it"
        )
    write_deploy_folder(
        folder,
        onnx_path=path,
        facts=_facts_of_file(path, predictor, layout, data).model_copy(update={"serving": extras.serving}),
        example_images=sample_images(data.split("validation"), NUM_EXAMPLES),
        options=DeployOptions(float_source=find_float_source(path), triton=extras.triton),
    )


def _facts_of_file(path: Path, predictor: OnnxPredictor, layout: Layout, data: PreparedData) -> DeployFacts:
    """What a file says of itself; nothing was measured on it as far as is known here."""
    known = predictor.metadata
    lineage = _mapping(known.get("lineage"))
    return DeployFacts(
        name=str(known.get("name", path.stem)),
        reason="asked for by the name of its file",
        form=str(known.get("form", FLOAT32)),
        architecture=_mapping(known.get("architecture")),
        method=_method(known.get("training")),
        num_parameters=_count(known.get("num_parameters")),
        flops=_count(known.get("flops")),
        data=data_in_words(data),
        preprocessing=_mapping(known.get("preprocessing")),
        lineage={key: str(value) for key, value in lineage.items()},
        requirements=runtime_versions(layout.root),
    )


def _mapping(value: JsonValue) -> dict[str, JsonValue]:
    return dict(value) if isinstance(value, dict) else {}


def _count(value: JsonValue) -> int | None:
    return value if isinstance(value, int) else None


def _method(training: JsonValue) -> str:
    match training:
        case {"method": {"name": str(name)}}:
            return name
        case _:
            return "unknown"
