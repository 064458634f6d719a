"""The folder of one student's file, from what the stages left about it."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from compress.bill_of_materials import REQUIRED_PACKAGES
from compress.data.prepared import PreparedData, load_prepared
from compress.deploy import DeployOptions, write_deploy_folder
from compress.files import read_json
from compress.load_record import LoadRecord
from compress.model_card import DeployFacts, TeacherFacts
from pipelines.exported_bytes import require_same_bytes
from pipelines.layout import TEACHER, Layout
from pipelines.samples import sample_images

NUM_EXAMPLES = 8
LOCK = "requirements-serve.lock"
SHOWN_ON_CARD = (
    "accuracy_top1_mean",
    "accuracy_top1_std",
    "accuracy_top5",
    "drop_from_float32",
    "negative_log_likelihood",
    "expected_calibration_error",
    "agreement_with_teacher",
    "latency_ms_p95",
    "latency_ms_p50_batch32",
    "images_per_second",
)
"""Measurements beyond those that every model card has."""

_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)[ \\]*$", re.MULTILINE)
"""A package of a lock file that is installed everywhere: those with a condition, such as Windows only, are not."""


class Extras(NamedTuple):
    """What a folder holds beside what the stages left."""

    triton: bool = False
    """Whether a Triton model repository is added."""
    serving: LoadRecord | None = None
    """A load test for the model card."""


def write_package(
    layout: Layout, row: dict[str, Any], *, reason: str, teacher: dict[str, Any] | None, folder: Path, extras: Extras
) -> None:
    """Write the folder of one row of the table; its example images are of validation, which training never saw.

    Raises:
        ArtifactError: the row's file is missing or no longer the one that was measured, or the load test is of
            another one.
    """
    path = layout.root / row["file"]
    data = load_prepared(layout.prepared)
    shipped = read_json(layout.exported(row["name"]) / "export.json", made_by="export")["shipped"]
    float_source = layout.exported(row["name"]) / shipped["file"]
    require_same_bytes(path, row["sha256"])
    require_same_bytes(float_source, shipped["sha256"])
    write_deploy_folder(
        folder,
        onnx_path=path,
        facts=_facts(layout, row, reason=reason, teacher=teacher, data=data).model_copy(
            update={"serving": extras.serving}
        ),
        example_images=sample_images(data.split("validation"), NUM_EXAMPLES),
        options=DeployOptions(float_source=float_source, triton=extras.triton, tolerance=row.get("golden_tolerance")),
    )


def _facts(
    layout: Layout, row: dict[str, Any], *, reason: str, teacher: dict[str, Any] | None, data: PreparedData
) -> DeployFacts:
    details = read_json(layout.results(row["name"]) / "details.json", made_by="evaluate")
    training = read_json(layout.results(row["name"]) / "training.json", made_by="distill")
    machine = details["machine"]
    return DeployFacts(
        name=row["name"],
        reason=reason,
        form=row["form"],
        form_notes=tuple(row.get("form_notes", ())),
        architecture=row["model"],
        method=row["method"],
        num_parameters=row["num_parameters"],
        flops=row["flops"],
        accuracy_validation=row["accuracy_top1_validation"],
        accuracy_test=row["accuracy_top1"],
        num_images_test=data.manifest.splits["test"].num_images,
        latency_ms=row["latency_ms_p50"],
        machine=f"{machine['processor']}, {machine['threads']} thread(s), {machine['runtime']}",
        data=data_in_words(data),
        preprocessing=data.manifest.preprocessing.model_dump(mode="json"),
        teacher=None
        if teacher is None
        else TeacherFacts(
            architecture=teacher["model"],
            accuracy_test=teacher["accuracy_top1"],
            latency_ms=details["timings"][TEACHER][0]["latency_ms_p50"],
            size_bytes=teacher["size_bytes"],
        ),
        metrics={name: row[name] for name in SHOWN_ON_CARD if name in row and _says_something(name, row)},
        lineage={key: value for key, value in training.items() if key.endswith(("_sha256", "_fingerprint"))},
        requirements=runtime_versions(layout.root),
    )


def _says_something(metric: str, row: dict[str, Any]) -> bool:
    """A mean over seeds does not where there is one, as for every form but float32."""
    return row["num_seeds"] > 1 or not metric.endswith(("_mean", "_std"))


def data_in_words(data: PreparedData) -> str:
    manifest = data.manifest
    sizes = ", ".join(f"{split} {info.num_images}" for split, info in manifest.splits.items())
    return f"{manifest.source['name']}: {len(manifest.classes)} classes; images: {sizes}"


def runtime_versions(root: Path) -> dict[str, str]:
    """Versions of the packages that run a deployed student: the pinned ones, or without a lock file those at hand."""
    lock = root / LOCK
    if lock.is_file():
        return dict(_PINNED.findall(lock.read_text(encoding="utf-8")))
    return {name: version(name) for name in REQUIRED_PACKAGES}
