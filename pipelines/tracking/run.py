"""One stage's connection to its run. Nothing here stops a stage: what the store does not take waits in a file."""

from __future__ import annotations

import json
import uuid
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, final

from compress.select import FLOAT32
from pipelines.layout import Layout
from pipelines.tracking import events
from pipelines.tracking.delivery import open_run
from pipelines.tracking.events import Event, trained_fingerprint
from pipelines.tracking.machine import origin_tags, system_metrics
from pipelines.tracking.model import FORMS_TAG, forms_in_words
from pipelines.tracking.sinks import Live, Nowhere, Sink, Waiting
from pipelines.tracking.spool import Spool
from pipelines.tracking.store import TrackingOffError, connect, reason, store_uri, warn, workspace

if TYPE_CHECKING:
    from compress.types import ImageArray

TRAINING_STAGES: Final = ("teacher", "distill")
"""Stages whose time is the run's time, and whose machine is watched."""
NO_TAGS: Final[Mapping[str, str]] = MappingProxyType({})
NO_METRICS: Final[Mapping[str, float]] = MappingProxyType({})


@final
class Run:
    """What a stage records. Every call returns, whatever the state of the store."""

    def __init__(self, run_id: str | None, url: str | None, sink: Sink) -> None:
        self.id: Final = run_id
        """The run's id for run.json; None while tracking is off."""
        self.url: Final = url
        """Its page on the server; None for the embedded store."""
        self._sink: Final = sink

    def log_params(self, settings: Mapping[str, Any]) -> None:
        """Nested settings as dotted parameters; `method` becomes its name, its hyper-parameters `tuning.<name>`."""
        self._sink.send(events.params_event(settings))

    def log_epoch(self, epoch: int, metrics: Mapping[str, float], *, seed: int | None = None) -> None:
        """All curves of one epoch in one call.

        Args:
            seed: None for a student's first seed; those of a further one stand beside as `<name>_seed_<seed>`.
        """
        suffix = "" if seed is None else f"_seed_{seed}"
        self._sink.send(events.metrics_event({f"{name}{suffix}": value for name, value in metrics.items()}, step=epoch))

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Final numbers of the network; its model, if it is logged by then, shows them too."""
        self._sink.send(events.metrics_event(metrics, final=True))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags of the run."""
        self._sink.send(events.tags_event(tags))

    def log_forms(self, others: Iterable[str]) -> None:
        """Which forms beside float32 may be shipped."""
        self.set_tags({FORMS_TAG: forms_in_words(others)})

    def log_file(self, path: Path, folder: str = "") -> None:
        """Keep a file with the run's model, inside `folder`; without a model with the run.

        Log the model first: a file of the run's own would hide the model's files on the run's page.
        """
        self._sink.send(events.file_event(path, folder))

    def log_dataset(self, name: str, *, digest: str, num_rows: int, context: str) -> None:
        """The data that the run used: a hash that identifies it, and what it was used for, such as `training`."""
        self._sink.send(events.dataset_event(name, digest=digest, num_rows=num_rows, context=context))

    def log_onnx(
        self,
        path: Path,
        *,
        name: str,
        form: str = FLOAT32,
        step: int = 0,
        metrics: Mapping[str, float] = NO_METRICS,
        example: ImageArray | None = None,
    ) -> None:
        """Log an ONNX file as a model of the run; its signature and class names are read from the file.

        Args:
            name: the student.
            form: of the file; the one in float32 also shows the run's final metrics.
            step: last epoch of its training.
            metrics: numbers to show with the model.
            example: images, the first of which is kept as the model's example.
        """
        self._sink.send(events.model_event(path, name=name, form=form, step=step, metrics=metrics, example=example))


@contextmanager
def track(
    root: Path, *, name: str, stage: str, run_id: str | None = None, tags: Mapping[str, str] = NO_TAGS
) -> Generator[Run]:
    """Record a stage's work on the network `name`.

    Args:
        root: the folder with the stage's files.
        run_id: the run to continue, from run.json. One that this store does not know, because it was made on another
            machine or while the store was away, goes on in a new run that remembers the id.
            None starts a run in a training stage; in a later stage it finds the run of these results or starts one.
        tags: lineage and whatever else is known before the work starts.
    """
    is_training = stage in TRAINING_STAGES
    run, sink = _open(root, _opening(root, name=name, stage=stage, run_id=run_id, tags=tags))
    if not is_training:
        yield run
        return
    with system_metrics(sink, run.id):
        try:
            yield run
        except BaseException as problem:
            sink.send(events.end_event("FAILED" if isinstance(problem, Exception) else "KILLED"))
            raise
        sink.send(events.end_event("FINISHED"))


def _opening(root: Path, *, name: str, stage: str, run_id: str | None, tags: Mapping[str, str]) -> Event:
    is_training = stage in TRAINING_STAGES
    return {
        "kind": "open",
        "id": run_id or uuid.uuid4().hex,
        "is_new": run_id is None and is_training,
        "is_training": is_training,
        "name": name,
        "fingerprint": None if is_training or run_id else _fingerprint_of_results(root, name),
        "tags": dict(tags),
        "origin_tags": origin_tags(root, stage) | {"dvc.workspace": workspace(root)},
        "time": events.now(),
    }


def _fingerprint_of_results(root: Path, name: str) -> str | None:
    try:
        training = json.loads((Layout(root).results(name) / "training.json").read_text(encoding="utf-8"))
        return trained_fingerprint(training)
    except (OSError, ValueError, KeyError):
        return None  # not trained, or damaged: for the stage to say, not for its tracking


def _open(root: Path, opening: Event) -> tuple[Run, Sink]:
    # Found later, the run may exist already: the store can have created it and been lost before it said so.
    waiting = Waiting(Spool(root), opening["id"], opening | {"is_new": False})
    try:
        store = connect(root)
        run_id = open_run(store, opening)
    except TrackingOffError as off:
        warn(str(off))
        return Run(None, None, Nowhere()), Nowhere()
    except Exception as problem:  # a store that is away must not stop the stage, whatever its client raises
        warn(f"cannot use {store_uri(root)} ({reason(problem)}); events wait for `compress sync`")
        return Run(opening["id"], None, waiting), waiting
    sink = Live(store, run_id, Waiting(Spool(root), run_id, opening | {"id": run_id, "is_new": False}))
    return Run(run_id, store.run_page(run_id), sink), sink
