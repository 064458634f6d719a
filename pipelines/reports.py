"""Pictures and tables of all students together, for `dvc plots show` and for reading."""

from __future__ import annotations

import csv
import importlib.util
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from compress.select import label
from pipelines.layout import TEACHER, Layout

COLUMNS = (
    "name",
    "form",
    "method",
    "accuracy_top1",
    "accuracy_top1_validation",
    "latency_ms_p50",
    "size_mb",
    "champion",
)
TRADE_OFFS = (
    ("accuracy_latency.png", "latency_ms_p50", "latency in ms, one image"),
    ("accuracy_size.png", "size_mb", "file size in MB"),
)


def write_reports(layout: Layout, teachers: list[dict[str, Any]], students: list[dict[str, Any]]) -> None:
    """Leave students.csv, learning_curves.csv and pictures of both in the reports folder.

    There is a point for each form of a student, and one learning curve for all of them.
    """
    layout.reports.mkdir(parents=True, exist_ok=True)
    _write_csv(layout.reports / "students.csv", COLUMNS, [[row[column] for column in COLUMNS] for row in students])
    curves = {row["name"]: _mean_curve(layout.results(row["name"]) / "history.csv") for row in students}
    rows = [(name, epoch, accuracy) for name, curve in curves.items() for epoch, accuracy in curve]
    _write_csv(layout.reports / "learning_curves.csv", ("student", "epoch", "validation_accuracy_top1"), rows)
    if importlib.util.find_spec("matplotlib") is None:
        print("warning: no pictures in reports/: matplotlib is not installed", file=sys.stderr)
        return
    for file, key, words in TRADE_OFFS:
        _draw_trade_off(layout.reports / file, [*teachers, *students], key, words)
    _draw_curves(layout.reports / "learning_curves.png", curves)


def _mean_curve(history: Path) -> list[tuple[int, float]]:
    """Validation accuracy after each epoch, averaged over seeds."""
    by_epoch: dict[int, list[float]] = defaultdict(list)
    with history.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            by_epoch[int(row["epoch"])].append(float(row["validation_accuracy_top1"]))
    return [(epoch, fmean(values)) for epoch, values in sorted(by_epoch.items())]


def _write_csv(path: Path, header: tuple[str, ...], rows: list[Any]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _figure() -> tuple[Any, Any]:
    # The object interface with its own canvas: nothing global, no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _draw_trade_off(path: Path, rows: list[dict[str, Any]], key: str, words: str) -> None:
    figure, axes = _figure()
    for row in rows:
        x, y = row[key], row["accuracy_top1"]
        axes.errorbar(x, y, yerr=row["accuracy_top1_std"], fmt="o", color=_color(row), capsize=3)
        axes.annotate(label(row["name"], row["form"]), (x, y), xytext=(6, 4), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel(words)
    axes.set_ylabel("top-1 accuracy on test")
    axes.set_title("red: teacher, green: champion, blue: Pareto front; bars: deviation over seeds", fontsize=9)
    figure.savefig(path)


def _color(row: dict[str, Any]) -> str:
    if row["name"] == TEACHER:
        return "tab:red"
    return "tab:green" if row["champion"] else "tab:blue" if row["pareto_front"] else "tab:gray"


def _draw_curves(path: Path, curves: dict[str, list[tuple[int, float]]]) -> None:
    figure, axes = _figure()
    for name, curve in curves.items():
        axes.plot([epoch for epoch, _ in curve], [accuracy for _, accuracy in curve], label=name)
    axes.set_xlabel("epoch")
    axes.set_ylabel("top-1 accuracy on validation, mean over seeds")
    axes.legend(fontsize=8, ncols=2)
    figure.savefig(path)
