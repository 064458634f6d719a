"""The tables at the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from compress.files import read_json
from compress.select import FLOAT32
from pipelines.console import console
from pipelines.layout import TEACHER, Layout

COLUMNS = ("student", "method", "parameters", "test accuracy", "gap", "size", "latency", "speed-up", "Pareto", "")
FORM_COLUMNS = ("student", "form", "size", "speed", "validation loss", "outcome")
INDENT = "  "

NOTES = (
    "accuracy: exported files on the test split, mean ± standard deviation over seeds; gap: teacher minus that mean",
    "latency: one image, median, one thread; champion and Pareto front are chosen on the validation split",
)
FORM_NOTE = "below a student: another form of its shipped seed's file; its gap is to that file in float32"
SEARCH_NOTE = "forms: size and speed against the float32 file; kept if smaller, faster and within export.forms.max_drop"


def run(root: Path) -> None:
    """Print the students, what became of other forms, the champion's file and the command that opens the MLflow UI."""
    layout = Layout(root)
    summary = read_json(layout.table, made_by="select")
    students = summary["students"]
    has_forms = any(student["form"] != FLOAT32 for student in students)
    out = console()
    out.print(table_of(summary))
    for line in (*NOTES, *([FORM_NOTE] if has_forms else [])):
        out.print(line, style="dim")
    if summary["forms"]:
        out.print()
        out.print(forms_of(summary))
        out.print(SEARCH_NOTE, style="dim")
    champion = next(student for student in students if student["champion"])
    form = "" if champion["form"] == FLOAT32 else f" as {champion['form']}"
    out.print(f"champion: {champion['name']}{form}  {layout.deploy.relative_to(root) / 'model.onnx'}")
    out.print(f"because:  {summary['reason']}")
    out.print("look:     make ui   (then open the address it prints)")


def table_of(summary: dict[str, Any]) -> Table:
    """The teacher, then a row for each student, best first, with its other forms below it."""
    table = Table(*COLUMNS, box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    teacher = summary["teacher"]
    best = None if teacher is None else teacher["accuracy_top1"]
    if teacher is not None:
        table.add_row(*_cells(teacher, best), "", "teacher", style="dim")
    for student in _grouped(summary["students"]):
        mark = "champion" if student["champion"] else ""
        style = "bold green" if student["champion"] else ""
        cells = _cells(student, best) if student["form"] == FLOAT32 else _form_cells(student)
        table.add_row(*cells, "yes" if student["pareto_front"] else "", mark, style=style)
    return table


def forms_of(summary: dict[str, Any]) -> Table:
    """What was tried, and why it was kept or not."""
    table = Table(*FORM_COLUMNS, box=None, pad_edge=False)
    for column in table.columns[2:5]:
        column.justify = "right"
    shown = ""
    for form in summary["forms"]:
        name = "" if form["student"] == shown else form["student"]
        shown = form["student"]
        table.add_row(
            name,
            form["form"],
            _optional(form["size_ratio"], ".0%"),
            _optional(form["speedup_over_float32"], ".2f", "x"),
            _optional(form["drop_from_float32_validation"], "+.2%"),
            "kept" if form["is_kept"] else form["reason"],
            style="" if form["is_kept"] else "dim",
        )
    return table


def _optional(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def _grouped(students: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Students in the order of their best rows, each with float32 first."""
    order = {name: place for place, name in enumerate(dict.fromkeys(student["name"] for student in students))}
    return sorted(students, key=lambda row: (order[row["name"]], row["form"] != FLOAT32))


def _cells(row: dict[str, Any], teacher_accuracy: float | None) -> list[str]:
    accuracy = f"{row['accuracy_top1_mean']:.2%}"
    if row["num_seeds"] > 1:
        accuracy += f" ± {row['accuracy_top1_std']:.2%}"
    alone = row["name"] == TEACHER or teacher_accuracy is None
    return [
        row["name"],
        row["method"],
        f"{row['num_parameters']:,}",
        accuracy,
        "" if alone else f"{teacher_accuracy - row['accuracy_top1_mean']:+.2%}",
        f"{row['size_mb']:.3f} MB",
        f"{row['latency_ms_p50']:.3f} ms",
        "" if alone else f"{row['speedup']:.1f}x",
    ]


def _form_cells(row: dict[str, Any]) -> list[str]:
    return [
        f"{INDENT}{row['form']}",
        "",
        "",
        f"{row['accuracy_top1']:.2%}",
        f"{row['drop_from_float32']:+.2%}",
        f"{row['size_mb']:.3f} MB",
        f"{row['latency_ms_p50']:.3f} ms",
        f"{row['speedup']:.1f}x" if "speedup" in row else "",
    ]
