"""Command lineage: what a network was made from, as its file says, held against what lies in the project."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from rich.table import Table

from compress.artifact import load_card
from compress.errors import ArtifactError, ParamsError
from compress.fingerprint import file_sha256, fingerprint
from compress.methods import Composed, LogitMethod, WithoutTeacher
from compress.models.checkpoint import CARD_FILE
from pipelines.code import code_fingerprint
from pipelines.console import console
from pipelines.layout import QUANTIZATION_AWARE, TEACHER, Layout
from pipelines.origin import LOCK, commit_of, settings_of, versions
from pipelines.params import load_params
from pipelines.settings import StudentSettings

SHORTEST_PREFIX = 7
MATCH, DIFFERS, NOT_HERE = "match", "differs", "not here"
RECORDS = (
    "models/**/card.json",
    "data/*/manifest.json",
    "exports/*/export.json",
    "results/*/training.json",
    "deploy/manifest.json",
)
"""Files of a project that hold hashes."""


class Fact(NamedTuple):
    """One thing that a file says about its origin."""

    name: str
    value: str
    state: str
    """`match`, `differs` or `not here`; empty where nothing can be compared."""


def run(root: Path, path: Path) -> None:
    """Print what a file says about its origin; exit code 1 where the project has something else.

    Raises:
        ArtifactError: it is neither an exported file nor a saved network.
    """
    facts = list(read_facts(root, path))
    table = Table("", "", "", box=None, show_header=False)
    for fact in facts:
        colour = {MATCH: "green", DIFFERS: "red"}.get(fact.state, "dim")
        table.add_row(fact.name, fact.value, f"[{colour}]{fact.state}[/]")
    console().print(table)
    differing = [fact.name for fact in facts if fact.state == DIFFERS]
    if differing:
        print(f"this project has another {', '.join(differing)}")
        sys.exit(1)


def find(root: Path, prefix: str) -> None:
    """Print every place of the project's records where a hash stands; exit code 1 where there is none.

    Raises:
        ParamsError: the beginning is too short to mean one hash.
    """
    if len(prefix) < SHORTEST_PREFIX:
        raise ParamsError(f"{prefix!r} is too short to find a hash by; give at least {SHORTEST_PREFIX} characters")
    found = list(places_of(root, prefix.lower()))
    for file, key, value in found:
        print(f"{file.relative_to(root)}: {key} = {value}")
    if not found:
        print(f"no file of this project speaks of {prefix}; stages that never ran here, or dvc pull, may bring it")
        sys.exit(1)


def places_of(root: Path, prefix: str) -> Iterator[tuple[Path, str, str]]:
    """File, dotted key and value of every text in the project's records that begins so."""
    for pattern in RECORDS:
        for file in sorted(root.glob(pattern)):
            for key, value in _texts(_json(file)):
                if value.startswith(prefix):
                    yield file, key, value


def read_facts(root: Path, path: Path) -> Iterator[Fact]:
    """What a file says, each fact compared with the project where that has one."""
    layout = Layout(root)
    metadata = read_metadata(path)
    name = str(metadata.get("name") or name_of(path))
    yield Fact("network", name, "")
    if "file_sha256" in metadata:
        yield _compared("file", metadata["file_sha256"], set(_hashes_of_files(layout, name)))
    yield _compared("weights_sha256", metadata.get("weights_sha256"), _weights(layout.model(name)))
    yield _compared("fingerprint", metadata.get("fingerprint"), set(_fingerprints(layout, name)))
    for key, value in sorted((metadata.get("lineage") or {}).items()):
        yield _compared(key, value, _here(layout, key))
    yield from _facts_of_origin(layout, name, metadata.get("origin") or {})


def read_metadata(path: Path) -> dict[str, Any]:
    """What an exported file or a saved network says about itself.

    Raises:
        ArtifactError: it is neither.
    """
    if path.suffix == ".onnx":
        from compress.runtime import load_predictor

        predictor = load_predictor(path)
        return {**predictor.metadata, "file_sha256": predictor.sha256}
    folder = path.parent if path.name == CARD_FILE else path
    if not folder.is_dir():
        raise ArtifactError(f"{path} is no .onnx file and no folder of a saved network; name one of these")
    return load_card(folder).model_dump(mode="json")


def name_of(path: Path) -> str:
    """The network's name by where it lies: models/NAME/seed_0/best or models/teacher."""
    parts = path.resolve().parts
    return parts[parts.index("models") + 1] if "models" in parts[:-1] else "unknown"


def _facts_of_origin(layout: Layout, name: str, origin: Mapping[str, Any]) -> Iterator[Fact]:
    if not origin:
        return
    recipe, here = origin["recipe"], commit_of(layout.root)
    commit = str(origin["commit"]) + (" with changes" if origin["commit_changed"] else "")
    known = str(here["commit"]) + (" with changes" if here["commit_changed"] else "")
    yield _compared("commit", commit, {known} if here["commit"] else set())
    yield _compared("training_code_sha256", origin["training_code_sha256"], _code(recipe["method"]))
    lock = layout.root / LOCK
    yield _compared("lock_sha256", origin["lock_sha256"], {file_sha256(lock)} if lock.is_file() else set())
    yield _compared("params", fingerprint(settings_of(recipe)), _rows_here(layout, name, recipe["seed"]))
    installed = versions()
    for package, version in origin["versions"].items():
        yield _compared(package, version, {str(installed[package])} if package in installed else set())
    for key, value in origin.get("machine", {}).items():
        yield Fact(key, str(value), "")


def _compared(name: str, value: object, here: set[str]) -> Fact:
    if value is None:
        return Fact(name, "unknown", "")
    return Fact(name, str(value), (MATCH if str(value) in here else DIFFERS) if here else NOT_HERE)


def _here(layout: Layout, key: str) -> set[str]:
    """What the project has of one entry of a network's lineage."""
    match key:
        case "data_fingerprint":
            return _field(layout.prepared / "manifest.json", "fingerprint")
        case "teacher_logits_sha256":
            return _field(layout.teacher_logits / "manifest.json", "sha256")
        case "teacher_sha256" | "made_of_sha256":
            return _weights(layout.teacher.parent)  # the teacher's, or another student's
        case _:
            return set()


def _weights(folder: Path) -> set[str]:
    return {value for card in folder.glob(f"**/{CARD_FILE}") for value in _field(card, "weights_sha256")}


def _fingerprints(layout: Layout, name: str) -> Iterator[str]:
    training = _json(layout.results(name) / "training.json")
    for seed in training.get("seeds", ()):
        yield str(seed["fingerprint"])
        if QUANTIZATION_AWARE in seed:
            yield str(seed[QUANTIZATION_AWARE]["fingerprint"])


def _hashes_of_files(layout: Layout, name: str) -> Iterator[str]:
    for file in (layout.exported(name) / "export.json", layout.deploy / "manifest.json"):
        yield from (value for key, value in _texts(_json(file)) if key.endswith("sha256"))


def _field(path: Path, key: str) -> set[str]:
    value = _json(path).get(key)
    return {value} if isinstance(value, str) else set()


def _code(method: object) -> set[str]:
    for kind in (LogitMethod, Composed, WithoutTeacher):
        try:
            return {code_fingerprint(TypeAdapter[Any](kind).validate_python(method))}
        except ValidationError:
            continue
    return {"another"}  # this code does not have the method


def _rows_here(layout: Layout, name: str, seed: int) -> set[str]:
    """Fingerprint of the settings that params.yaml has for a network now."""
    from pipelines.schema import AllParams

    if not layout.params.is_file():
        return set()
    params = load_params(AllParams, layout.params)
    settings = params.teacher if name == TEACHER else params.students.rows.get(name)
    if settings is None or settings.train is None:
        return set()
    row = {
        "model": settings.model.model_dump(mode="json", exclude_none=True),
        "method": settings.method.model_dump(mode="json"),
        "train": settings.train.model_dump(mode="json"),
        "views": params.views.model_dump(mode="json"),
        "seed": seed,
    }
    rows = [row]
    if isinstance(settings, StudentSettings) and settings.quantization_aware is not None:
        rows.append(row | {QUANTIZATION_AWARE: settings.quantization_aware.model_dump(mode="json")})
    return {fingerprint(settings_of(each)) for each in rows}


def _json(path: Path) -> dict[str, Any]:
    """A record of the project; nothing where it is not here or damaged, which the stage that reads it will say."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text inside a value with the dotted key that leads to it."""
    match value:
        case str():
            yield key, value
        case dict():
            for name, inner in value.items():
                yield from _texts(inner, f"{key}.{name}" if key else str(name))
        case list():
            for place, inner in enumerate(value):
                yield from _texts(inner, f"{key}.{place}")
        case _:
            return
