"""The table at the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from compress.files import read_json
from pipelines.console import console
from pipelines.layout import TEACHER, Layout

COLUMNS = ("student", "method", "parameters", "test accuracy", "gap", "size", "latency", "speed-up", "Pareto", "")

NOTES = (
    "accuracy: exported files on the test split, mean ± standard deviation over seeds; gap: teacher minus that mean",
    "latency: one image, median, one thread; champion and Pareto front are chosen on the validation split",
)


def run(root: Path) -> None:
    """Print the students, the champion's file and the command that opens the MLflow UI."""
    layout = Layout(root)
    summary = read_json(layout.table, made_by="select")
    out = console()
    out.print(table_of(summary))
    for line in NOTES:
        out.print(line, style="dim")
    champion = next(student for student in summary["students"] if student["champion"])
    out.print(f"champion: {champion['name']}  {layout.deploy.relative_to(root) / 'model.onnx'}")
    out.print(f"because:  {summary['reason']}")
    out.print("look:     make ui   (then open the address it prints)")


def table_of(summary: dict[str, Any]) -> Table:
    """One row per student, best first, under the teacher's."""
    table = Table(*COLUMNS, box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    teacher = summary["teacher"]
    best = None if teacher is None else teacher["accuracy_top1"]
    if teacher is not None:
        table.add_row(*_cells(teacher, best), "", "teacher", style="dim")
    for student in summary["students"]:
        mark = "champion" if student["champion"] else ""
        style = "bold green" if student["champion"] else ""
        table.add_row(*_cells(student, best), "yes" if student["pareto_front"] else "", mark, style=style)
    return table


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
