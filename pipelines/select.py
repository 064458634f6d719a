"""Stage select: all students and their forms in one table, the champion, and the folder that is shipped."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue

from compress.errors import SelectionError, TrackingError
from compress.files import check_files, read_json, write_json, write_record
from compress.select import Candidate, Constraints, Selection, label, select
from compress.settings import Settings
from pipelines.absence import is_absent
from pipelines.deploy_folder import Extras, write_package
from pipelines.layout import TEACHER, Layout
from pipelines.params import load_params
from pipelines.reports import write_reports
from pipelines.searched_forms import form_notes, golden_tolerance, searched_forms
from pipelines.tracking.registry import mark_current, promote
from pipelines.tracking.store import TrackingOffError, workspace
from pipelines.tracking.view import seed_view


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
    """Rank the students of params.yaml, each in every form that its evaluation kept, and ship the champion.

    The table is written even when nobody satisfies the constraints, so that a person sees by how much they fail.

    Raises:
        SelectionError: nobody satisfies the constraints.
    """
    layout = Layout(root)
    params = load_params(SelectParams, layout.params)
    names = params.students.names
    teacher = None if is_absent(layout.exported(TEACHER)) else _row(layout, TEACHER)
    rows = [row for name in names for row in (_row(layout, name), *_form_rows(layout, name))]
    table: dict[str, Any] = {
        "constraints": params.select.model_dump(mode="json"),
        "teacher": teacher,
        "forms": [form for name in names for form in searched_forms(layout, name)],
    }
    try:
        selection = select([_candidate(row) for row in rows], params.select)
    except SelectionError:
        nobody = {"champion": None, "form": None, "reason": None}
        write_record(layout.table, {**table, **nobody, "students": _ranked(rows, None)})
        raise
    students = _ranked(rows, selection)
    outcome = {"champion": selection.champion, "form": selection.form, "reason": selection.reason}
    write_record(layout.table, {**table, **outcome, "students": students})
    champion = next(row for row in students if row["champion"])
    write_json(layout.champion, champion)
    write_reports(layout, [] if teacher is None else [teacher], students)
    write_package(layout, champion, reason=selection.reason, teacher=teacher, folder=layout.deploy, extras=Extras())
    shipped = label(selection.champion, selection.form)
    _tell_tracker(root, list(names) if teacher is None else [TEACHER, *names], shipped)


def _row(layout: Layout, name: str) -> dict[str, Any]:
    """What is known about one network: what it is, how it was trained, what was measured on its float32 file."""
    results, trained_by = layout.results(name), "teacher" if name == TEACHER else "distill"
    training = read_json(results / "training.json", made_by=trained_by)
    check_files(results, training, made_by=trained_by)
    check_files(results, read_json(results / "details.json", made_by="evaluate"), made_by="evaluate")
    evaluation = read_json(results / "evaluation.json", made_by="evaluate")
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


def _form_rows(layout: Layout, name: str) -> list[dict[str, Any]]:
    """The same about the other forms of the shipped file, which exist for its seed alone."""
    float32 = _row(layout, name)
    of_forms = read_json(layout.results(name) / "evaluation.json", made_by="evaluate").get("forms", {})
    files = read_json(layout.exported(name) / "export.json", made_by="export")["forms"]
    return [
        {
            **float32,
            "form": file["form"],
            "seeds": [file["seed"]],
            "num_seeds": 1,
            "file": str((layout.exported(name) / file["file"]).relative_to(layout.root)),
            "sha256": file["sha256"],
            "size_bytes": file["size_bytes"],
            **of_forms[file["form"]],
            "form_notes": form_notes(file, of_forms[file["form"]]),
            "golden_tolerance": golden_tolerance(file),
        }
        for file in files
        if file["form"] in of_forms
    ]


def _candidate(row: dict[str, Any]) -> Candidate:
    return Candidate(
        name=row["name"],
        form=row["form"],
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
            "champion": selection is not None and (row["name"], row["form"]) == (selection.champion, selection.form),
            "pareto_front": selection is not None and label(row["name"], row["form"]) in selection.front,
            "reason": None if selection is None else selection.reasons.get(label(row["name"], row["form"])),
        }
        for row in rows
    ]
    return sorted(
        marked, key=lambda row: (not row["champion"], -row["accuracy_top1_validation"], row["name"], row["form"])
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
