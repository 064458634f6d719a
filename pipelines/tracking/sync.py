"""Bring the tracker up to DVC's files: after a clone with `dvc pull`, or when the server was away."""

from __future__ import annotations

import csv
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from compress.files import read_json
from pipelines.layout import TEACHER, Layout
from pipelines.tracking import events
from pipelines.tracking.delivery import deliver, open_run
from pipelines.tracking.events import Event
from pipelines.tracking.model import FORMS_TAG, forms_in_words, models_of
from pipelines.tracking.registry import mark_current_in, model_events, run_of_results, trained_names
from pipelines.tracking.spool import Spool
from pipelines.tracking.store import (
    FINGERPRINT_TAG,
    WORKSPACE_TAG,
    Store,
    is_refusal,
    locked,
    reached,
    reason,
    store_root,
    workspace,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

CURVES: Final = {
    "train_loss": "train/loss",
    "train_hard": "train/hard",
    "train_soft": "train/soft",
    "validation_accuracy_top1": "validation/accuracy_top1",
    "validation_loss": "validation/loss",
    "learning_rate": "learning_rate",
    "images_per_second": "images_per_second_train",
}
"""Columns of history.csv and the metrics that show them."""
LINEAGE_SUFFIXES: Final = ("_fingerprint", "_sha256")


@final
@dataclass(frozen=True)
class SyncReport:
    """What `sync` did."""

    created: tuple[str, ...]
    """Networks whose run was missing."""
    updated: tuple[str, ...]
    """Networks whose run lacked something."""
    unchanged: tuple[str, ...]
    delivered: int
    """Events that had waited for the store."""
    refused: tuple[str, ...]
    """Why some of them were refused; they are gone, DVC's files have their contents."""


def sync(root: Path) -> SyncReport:
    """Deliver what waited, then add to the store whatever DVC's files say and it lacks. A second call adds nothing.

    Raises:
        TrackingError: tracking is off or the store cannot be used.
        ArtifactError: a file of an earlier stage is damaged.
    """
    with reached(root) as store, locked(store_root(root) / ".work" / "sync.lock"):
        delivered, refused = _deliver_waiting(store, Spool(root))
        names = _names(root)
        outcomes = {name: _rebuild(store, root, name) for name in names}
        mark_current_in(store, root, names)
    created, updated, unchanged = (
        tuple(name for name, outcome in outcomes.items() if outcome == kind)
        for kind in ("created", "updated", "unchanged")
    )
    return SyncReport(created, updated, unchanged, delivered, refused)


def _names(root: Path) -> list[str]:
    """The networks of the last selection; before the first one, all that have results.

    Results of a student that was removed from params.yaml stay on disk.
    """
    trained = trained_names(root)
    table = Layout(root).table
    if not table.exists():
        return trained
    selected = {str(student["name"]) for student in read_json(table, made_by="select")["students"]} | {TEACHER}
    return [name for name in trained if name in selected]


def _deliver_waiting(store: Store, spool: Spool) -> tuple[int, tuple[str, ...]]:
    delivered = 0
    refused: list[str] = []
    for first_id in spool.waiting():
        run_id: str | None = None

        def send(event: Event, first_id: str = first_id) -> None:
            nonlocal run_id, delivered
            if event["kind"] == "open":
                run_id = open_run(store, event)
                return
            if run_id is None:  # its opening was delivered before
                known = store.find_run("", run_id=first_id, fingerprint=None)
                run_id = first_id if known is None else known.info.run_id
            try:
                deliver(store, run_id, event)
            except Exception as problem:  # whatever MLflow passes on: only a refusal may be dropped
                if not is_refusal(problem):
                    raise
                refused.append(f"{event['kind']} of run {run_id}: {reason(problem)}")
            else:
                delivered += 1

        spool.drain(first_id, send)
    return delivered, tuple(refused)


def _rebuild(store: Store, root: Path, name: str) -> str:
    run = run_of_results(store, root, name)
    outcome = "unchanged"
    if run is None:
        run = store.client.get_run(open_run(store, _opening(root, name)))
        outcome = "created"
    missing = list(_missing(store, root, name, run))
    for event in missing:
        deliver(store, run.info.run_id, event)
    if outcome == "created":
        deliver(store, run.info.run_id, events.end_event("FINISHED"))
    return "updated" if missing and outcome == "unchanged" else outcome


def _opening(root: Path, name: str) -> Event:
    layout = Layout(root)
    training = read_json(layout.results(name) / "training.json", made_by="training")
    run_id = read_json(layout.run(name), made_by="training")["run_id"] if layout.run(name).exists() else None
    return {
        "kind": "open",
        "id": run_id or uuid.uuid4().hex,
        "is_new": True,
        "is_training": False,
        "name": name,
        "fingerprint": events.trained_fingerprint(training),
        "tags": {},
        "origin_tags": {"stage": training["stage"], "compress.rebuilt": "true", WORKSPACE_TAG: workspace(root)},
        "time": events.now() - int(1000 * _train_seconds(training)),
    }


def _missing(store: Store, root: Path, name: str, run: Run) -> Iterator[Event]:
    """What DVC's files say about the network and its run lacks, as events in a fitting order."""
    layout = Layout(root)
    training = read_json(layout.results(name) / "training.json", made_by="training")
    params = events.params_event({"student": name, **training["settings"]})["params"]
    if absent := {key: value for key, value in params.items() if key not in run.data.params}:
        yield {"kind": "params", "params": absent}
    tags = {key: str(value) for key, value in training.items() if key.endswith(LINEAGE_SUFFIXES)}
    tags[FINGERPRINT_TAG] = events.trained_fingerprint(training)
    measured = layout.results(name) / "evaluation.json"
    if measured.exists():
        tags[FORMS_TAG] = forms_in_words(read_json(measured, made_by="evaluate").get("forms", ()))
    if absent := {key: value for key, value in tags.items() if run.data.tags.get(key) != value}:
        yield events.tags_event(absent)
    if points := _missing_points(store, layout, name, run):
        yield events.points_event(points)
    known = {model.sha256 for model in models_of(store, run)}
    yield from (model for model in model_events(root, name) if model["sha256"] not in known)
    final = _final_metrics(layout, name, training)
    if absent := {key: value for key, value in final.items() if run.data.metrics.get(key) != events.rounded(value)}:
        yield events.metrics_event(absent, final=True)


def _missing_points(store: Store, layout: Layout, name: str, run: Run) -> list[tuple[str, float, int]]:
    known: dict[str, set[int]] = {}
    points: list[tuple[str, float, int]] = []
    for metric, value, epoch in _curve_points(layout.results(name) / "history.csv"):
        if metric not in known:
            stored = store.client.get_metric_history(run.info.run_id, metric) if metric in run.data.metrics else []
            known[metric] = {point.step for point in stored}
        if epoch not in known[metric]:
            points.append((metric, value, epoch))
    return points


def _curve_points(path: Path) -> Iterator[tuple[str, float, int]]:
    """Every number of history.csv with its metric and epoch; a further seed has curves of its own."""
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        suffix = "" if row["seed"] == rows[0]["seed"] else f"_seed_{row['seed']}"
        for column, metric in CURVES.items():
            if row.get(column):
                yield f"{metric}{suffix}", float(row[column]), int(row["epoch"])


def _final_metrics(layout: Layout, name: str, training: Mapping[str, Any]) -> dict[str, float]:
    metrics = {"train_seconds": _train_seconds(training)}
    path = layout.results(name) / "evaluation.json"
    if path.exists():
        metrics |= read_json(path, made_by="evaluate")["metrics"]
    return {key: float(value) for key, value in metrics.items() if value is not None}


def _train_seconds(training: Mapping[str, Any]) -> float:
    return sum(float(seed["train_seconds"]) for seed in training["seeds"])
