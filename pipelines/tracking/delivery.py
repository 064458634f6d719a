"""Sending events to MLflow."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from compress.select import FLOAT32
from pipelines.tracking.events import Event
from pipelines.tracking.model import log_model, models_of
from pipelines.tracking.store import CURRENT_TAG, FINGERPRINT_TAG, ORIGIN_TAG, STUDENT_TAG, Store

MOST_PARAMS: Final = 100
MOST_METRICS: Final = 1000
LONGEST_DIGEST: Final = 36
"""Limits of MLflow, the first two per batch."""

T = TypeVar("T")


def open_run(store: Store, opening: Event) -> str:
    """Find or create the run that an opening event describes, and return its id.

    Raises:
        Exception: whatever MLflow raises.
    """
    name, tags = opening["name"], opening["tags"]
    found = None
    if not opening["is_new"]:
        found = store.find_run(name, run_id=opening["id"], fingerprint=opening["fingerprint"])
    if found is None:
        marks = {STUDENT_TAG: name, CURRENT_TAG: "true", ORIGIN_TAG: opening["id"]}
        if opening["fingerprint"] is not None:
            marks[FINGERPRINT_TAG] = opening["fingerprint"]
        every = opening["origin_tags"] | tags | marks
        run = store.client.create_run(store.experiment_id, opening["time"], tags=every, run_name=name)
        _log_params(store, run.info.run_id, {"student": name})
        return run.info.run_id
    if tags:
        _log_tags(store, found.info.run_id, tags)
    if opening["is_training"] and found.info.status != "RUNNING":
        store.client.update_run(found.info.run_id, status="RUNNING")
    return found.info.run_id


def deliver(store: Store, run_id: str, event: Event) -> None:
    """Send one event.

    Raises:
        Exception: whatever MLflow raises; `store.is_refusal` tells a refusal from a store that is away.
    """
    match event["kind"]:
        case "params":
            _log_params(store, run_id, event["params"])
        case "metrics":
            _log_metrics(store, run_id, event)
        case "tags":
            _log_tags(store, run_id, event["tags"])
        case "file":
            _log_file(store, run_id, Path(event["path"]), event["folder"] or None)
        case "dataset":
            _log_dataset(store, run_id, event)
        case "model":
            log_model(store, run_id, event)
        case "end":
            store.client.set_terminated(run_id, event["status"], event["time"])
        case kind:
            raise ValueError(f"unknown kind of event {kind!r}")


def _log_params(store: Store, run_id: str, params: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    for chunk in _chunks([Param(key, value) for key, value in params.items()], MOST_PARAMS):
        store.client.log_batch(run_id, params=chunk, synchronous=True)


def _log_tags(store: Store, run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    for chunk in _chunks([RunTag(key, value) for key, value in tags.items()], MOST_PARAMS):
        store.client.log_batch(run_id, tags=chunk, synchronous=True)


def _log_metrics(store: Store, run_id: str, event: Event) -> None:
    from mlflow.entities import Metric

    models = models_of(store, store.client.get_run(run_id)) if event["final"] else []
    # The newest float32 model shows final metrics, at its own step; other forms came with theirs.
    shown = next((known for known in models if known.form == FLOAT32), None)
    batch = [
        Metric(
            name,
            value,
            event["time"],
            step if shown is None else shown.step,
            model_id=None if shown is None else shown.model.model_id,
            run_id=run_id,
        )
        for name, value, step in event["points"]
    ]
    for chunk in _chunks(batch, MOST_METRICS):
        store.client.log_batch(run_id, metrics=chunk, synchronous=True)


def _log_file(store: Store, run_id: str, path: Path, folder: str | None) -> None:
    """A run's page lists the files of its model only while the run has none of its own, so it goes to the model."""
    models = models_of(store, store.client.get_run(run_id))
    if not models:
        store.client.log_artifact(run_id, str(path), folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        shutil.copy(path, temporary)
        store.client.log_model_artifacts(models[0].model.model_id, temporary, folder)


def _log_dataset(store: Store, run_id: str, event: Mapping[str, Any]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=event["name"],
        digest=event["digest"][:LONGEST_DIGEST],
        source_type="local",
        source=json.dumps({"uri": "data/prepared"}),
        profile=json.dumps({"num_rows": event["num_rows"]}),
    )
    tags = [InputTag("mlflow.data.context", event["context"])]
    store.client.log_inputs(run_id, datasets=[DatasetInput(dataset, tags)])


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
