"""Stage select: all students in one table, the champion, and the folder that is shipped."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue

from compress.data.prepared import load_prepared
from compress.deploy import write_deploy_folder
from compress.errors import SelectionError, TrackingError
from compress.files import read_json, write_json
from compress.model_card import DeployFacts, TeacherFacts
from compress.select import Candidate, Constraints, Selection, select
from compress.settings import Settings
from pipelines.absence import is_absent
from pipelines.layout import TEACHER, Layout
from pipelines.params import load_params
from pipelines.reports import write_reports
from pipelines.samples import sample_images
from pipelines.tracking.registry import mark_current, promote
from pipelines.tracking.store import TrackingOffError, workspace
from pipelines.tracking.view import seed_view

NUM_EXAMPLES = 8
SHOWN_ON_CARD = (
    "accuracy_top1_mean",
    "accuracy_top1_std",
    "accuracy_top5",
    "negative_log_likelihood",
    "expected_calibration_error",
    "agreement_with_teacher",
    "latency_ms_p95",
    "latency_ms_p50_batch32",
    "images_per_second",
)
"""Measurements beyond those that every model card has."""


class StudentNames(Settings):
    """The rows, of which this stage reads only the names: a row's settings are the business of earlier stages."""

    distilled: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    composed: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    teacher_free: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    self_taught: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.distilled, *self.composed, *self.teacher_free, *self.self_taught)


class SelectParams(Settings):
    """Sections that this stage reads."""

    students: StudentNames
    select: Constraints = Constraints()


def run(root: Path) -> None:
    """Rank the students of params.yaml and ship the champion.

    The table is written even when nobody satisfies the constraints, so that a person sees by how much they fail.

    Raises:
        SelectionError: nobody satisfies the constraints.
    """
    layout = Layout(root)
    params = load_params(SelectParams, layout.params)
    names = params.students.names
    teacher = None if is_absent(layout.exported(TEACHER)) else _row(layout, TEACHER)
    rows = [_row(layout, name) for name in names]
    table: dict[str, Any] = {
        "constraints": params.select.model_dump(mode="json"),
        "teacher": teacher,
    }
    try:
        selection = select([_candidate(row) for row in rows], params.select)
    except SelectionError:
        write_json(layout.table, {**table, "champion": None, "reason": None, "students": _ranked(rows, None)})
        raise
    students = _ranked(rows, selection)
    write_json(
        layout.table, {**table, "champion": selection.champion, "reason": selection.reason, "students": students}
    )
    champion = next(row for row in students if row["champion"])
    write_json(layout.champion, champion)
    write_reports(layout, [] if teacher is None else [teacher], students)
    _deploy(layout, champion, selection.reason, teacher)
    _tell_tracker(root, list(names) if teacher is None else [TEACHER, *names], selection.champion)


def _row(layout: Layout, name: str) -> dict[str, Any]:
    """What is known about one network: what it is, how it was trained, what was measured on its file."""
    training = read_json(layout.results(name) / "training.json", made_by="teacher" if name == TEACHER else "distill")
    evaluation = read_json(layout.results(name) / "evaluation.json", made_by="evaluate")
    shipped = read_json(layout.exported(name) / "export.json", made_by="export")["shipped"]
    settings = training["settings"]
    return {
        "name": name,
        "form": shipped["form"],
        "method": method_label(settings["method"]) if "train" in settings else "loaded",
        "model": settings["model"],
        "seeds": [seed["seed"] for seed in training["seeds"]],
        "num_seeds": len(training["seeds"]),
        "shipped_seed": shipped["seed"],
        "file": str((layout.exported(name) / shipped["file"]).relative_to(layout.root)),
        "sha256": shipped["sha256"],
        "size_bytes": shipped["size_bytes"],
        "num_parameters": shipped["num_parameters"],
        "flops": shipped["flops"],
        **evaluation["metrics"],
    }


def _candidate(row: dict[str, Any]) -> Candidate:
    return Candidate(
        name=row["name"],
        accuracy_validation=row["accuracy_top1_validation"],
        accuracy_test=row["accuracy_top1"],
        latency_ms=row["latency_ms_p50"],
        size_bytes=row["size_bytes"],
        drop=row.get("gap_to_teacher_validation"),
    )


def method_label(method: dict[str, Any]) -> str:
    """A method in a table: its name, with the names of the methods it is made of."""
    parts = [method[key] for key in ("method", "logits") if key in method] + list(method.get("features", ()))
    inner = "+".join(method_label(part) for part in parts)
    if method["name"] == "combination":
        return inner
    return f"{method['name']}({inner})" if inner else str(method["name"])


def _ranked(rows: list[dict[str, Any]], selection: Selection | None) -> list[dict[str, Any]]:
    """The champion first, the others by validation accuracy, each with the reason why it lost."""
    marked = [
        {
            **row,
            "champion": selection is not None and row["name"] == selection.champion,
            "pareto_front": selection is not None and row["name"] in selection.front,
            "reason": None if selection is None else selection.reasons.get(row["name"]),
        }
        for row in rows
    ]
    return sorted(marked, key=lambda row: (not row["champion"], -row["accuracy_top1_validation"], row["name"]))


def _deploy(layout: Layout, champion: dict[str, Any], reason: str, teacher: dict[str, Any] | None) -> None:
    """Write the folder that is shipped; its example images are of validation, which training never saw."""
    data = load_prepared(layout.prepared)
    manifest = data.manifest
    details = read_json(layout.results(champion["name"]) / "details.json", made_by="evaluate")
    training = read_json(layout.results(champion["name"]) / "training.json", made_by="distill")
    machine = details["machine"]
    sizes = ", ".join(f"{split} {info.num_images}" for split, info in manifest.splits.items())
    facts = DeployFacts(
        name=champion["name"],
        reason=reason,
        architecture=champion["model"],
        method=champion["method"],
        num_parameters=champion["num_parameters"],
        flops=champion["flops"],
        accuracy_validation=champion["accuracy_top1_validation"],
        accuracy_test=champion["accuracy_top1"],
        num_images_test=manifest.splits["test"].num_images,
        latency_ms=champion["latency_ms_p50"],
        machine=f"{machine['processor']}, {machine['threads']} thread(s), {machine['runtime']}",
        data=f"{manifest.source['name']}: {len(manifest.classes)} classes; images: {sizes}",
        preprocessing=manifest.preprocessing.model_dump(mode="json"),
        teacher=None
        if teacher is None
        else TeacherFacts(
            architecture=teacher["model"],
            accuracy_test=teacher["accuracy_top1"],
            latency_ms=details["timings"][TEACHER][0]["latency_ms_p50"],
            size_bytes=teacher["size_bytes"],
        ),
        metrics={name: champion[name] for name in SHOWN_ON_CARD if name in champion},
        lineage={key: value for key, value in training.items() if key.endswith(("_sha256", "_fingerprint"))},
    )
    write_deploy_folder(
        layout.deploy,
        onnx_path=layout.root / champion["file"],
        facts=facts,
        example_images=sample_images(data.split("validation"), NUM_EXAMPLES),
    )


def _tell_tracker(root: Path, names: list[str], champion: str) -> None:
    """Show the outcome in the tracker. The files above are the truth: a tracker that is away must not undo them."""
    mark_current(root, names)
    seed_view(root)
    if workspace(root) != "main":
        return  # a queued experiment is a proposal; the champion changes when it is applied
    try:
        promotion = promote(root, champion)
    except TrackingOffError:
        return
    except TrackingError as error:
        print(f"warning: the champion is not registered: {error}; later: compress promote {champion}", file=sys.stderr)
    else:
        print(f"registered as {promotion.uri}, version {promotion.version}")
