"""Train one network to the end: checkpoints, progress, tracking and the files that a training stage leaves."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import JsonValue
from torch import nn

from compress.batches import TrainingData
from compress.checkpoint import CheckpointFolder
from compress.data.manifest import Manifest
from compress.device import resolve_device
from compress.errors import ArtifactError, TrainingError
from compress.files import read_json, write_json
from compress.fingerprint import fingerprint
from compress.methods import Method
from compress.models import ModelSource, Network, Statistics, build_network
from compress.ranks import agreed, ranks_here
from compress.teacher_logits import TeacherAnswers
from compress.train import train_epochs, train_together
from compress.training_state import EpochReport, Trainee, TrainingState, TrainSettings, new_training_state
from pipelines.code import code_fingerprint
from pipelines.progress import epoch_line, training_progress
from pipelines.tracking import Run, track
from pipelines.tracking.sinks import Nowhere
from pipelines.trained import Trained

Lineage = dict[str, str]
"""Hashes of what a network was made from, by name."""


class Continuation(ABC):
    """Training that goes on from the best weights of another job, with the network changed."""

    before: Job
    """What has to be trained first, in the same folder."""
    section: str
    """Name in front of its curves."""

    @abstractmethod
    def recipe(self) -> dict[str, JsonValue]:
        """What `before` lacks in its recipe."""

    @abstractmethod
    def facts(self) -> dict[str, JsonValue]:
        """Everything that decides how the network is changed."""

    @abstractmethod
    def changed(self, network: Network, job: Job) -> nn.Module:
        """The network that trains on, made of the trained one."""


@dataclass(frozen=True)
class Job:
    """One network to train, and everything that determines what comes out."""

    label: str
    model: ModelSource
    method: Method
    settings: TrainSettings
    seed: int
    data: TrainingData
    manifest: Manifest
    lineage: Lineage
    teacher: TeacherAnswers | None = None
    curve_seed: int | None = None
    """Seed to tell this run's curves from those of the student's first seed; None for the first."""
    continuation: Continuation | None = None
    """What it goes on from; None for a training from the beginning."""

    @property
    def recipe(self) -> dict[str, Any]:
        """Settings that `compress replay` trains it with again, in the words of params.yaml."""
        if self.continuation is not None:
            return self.continuation.before.recipe | self.continuation.recipe()
        return {
            "data": self.manifest.settings,
            "views": self.data.views.model_dump(mode="json"),
            "model": self.model.model_dump(mode="json", exclude_none=True),
            "method": self.method.model_dump(mode="json"),
            "train": self.settings.model_dump(mode="json"),
            "seed": self.seed,
        }

    @cached_property
    def fingerprint(self) -> str:
        """Hash over settings, data, teacher, code and torch's version."""
        return fingerprint(
            {
                "model": self.model.model_dump(mode="json"),
                "method": self.method.model_dump(mode="json"),
                "settings": self.settings.model_dump(mode="json"),
                "views": self.data.views.model_dump(mode="json"),
                "lineage": dict(self.lineage),
                "seed": self.seed,
                "code": code_fingerprint(self.method),
                "torch": torch.__version__,
                "threads": threads_of(self.settings),
                "continuation": None if self.continuation is None else self.continuation.facts(),
            }
        )

    def curves(self, report: EpochReport) -> dict[str, float]:
        """One epoch under the tracker's names."""
        metrics = epoch_metrics(report)
        section = None if self.continuation is None else self.continuation.section
        return metrics if section is None else {f"{section}/{name}": value for name, value in metrics.items()}


def train(job: Job, *, work: Path, run: Run) -> tuple[Trained, TrainingState]:
    """Train to the last epoch, from the newest checkpoint of this very job if there is one.

    `work` holds the checkpoints, which stay until the caller removes them.
    """
    with _opened(Lesson(job, work, run)) as opened:
        state, settings = opened.state, job.settings
        reports = train_epochs(state, job.data, settings=settings, seed=job.seed)
        for report in training_progress(
            reports, label=job.label, num_epochs=settings.epochs, num_images=len(job.data.train)
        ):
            opened.keep(report)
        trained = Trained(
            seed=job.seed,
            history=tuple(state.history),
            train_seconds=opened.seconds,
            last=state.history[-1],
            best=state.history[state.best_epoch - 1],
            fingerprint=job.fingerprint,
        )
    return trained, state


def threads_of(settings: TrainSettings) -> int | None:
    """CPU threads, where they decide the order of sums."""
    is_on_cpu = resolve_device(settings.device).type == "cpu"
    return settings.threads or torch.get_num_threads() if is_on_cpu else None


class Lesson(NamedTuple):
    """A job with the places where its training is noted."""

    job: Job
    work: Path
    """Folder for checkpoints."""
    run: Run


def train_side_by_side(lessons: Sequence[Lesson]) -> None:
    """Train to checkpoints of the last epoch; lessons that can share batches share them, the others follow."""
    groups: dict[Any, list[Lesson]] = defaultdict(list)
    for lesson in lessons:
        settings = lesson.job.settings
        groups[lesson.job.seed, settings.batch_size, settings.mixing, settings.device, settings.threads].append(lesson)
    for group in groups.values():
        with ExitStack() as stack:
            opened = [stack.enter_context(_opened(lesson)) for lesson in group]
            trainees = [Trainee(each.state, each.lesson.job.settings) for each in opened]
            job = group[0].job
            for number, report in train_together(trainees, job.data, seed=job.seed):
                if isinstance(report, EpochReport):
                    print(
                        epoch_line(opened[number].lesson.job.label, report, trainees[number].settings.epochs),
                        flush=True,
                    )
                    opened[number].keep(report)


@dataclass
class _Opened:
    """A training under way: its state, and the folder that nobody else may train in meanwhile."""

    lesson: Lesson
    state: TrainingState
    checkpoints: CheckpointFolder
    started: float
    """On the monotonic clock, earlier sessions' time included."""

    @property
    def seconds(self) -> float:
        """Trained so far."""
        return time.monotonic() - self.started

    def keep(self, report: EpochReport) -> None:
        """Write the checkpoint of an epoch and tell the tracker; the first rank does it for all."""
        if not ranks_here().is_first:
            return
        self.checkpoints.save(report.epoch, self.state.state_dict() | {"train_seconds": self.seconds})
        self.lesson.run.log_epoch(report.epoch, self.lesson.job.curves(report), seed=self.lesson.job.curve_seed)


@contextmanager
def _opened(lesson: Lesson) -> Generator[_Opened]:
    """The newest checkpoint of a job, or its beginning."""
    job = lesson.job
    checkpoints = CheckpointFolder(lesson.work, job.fingerprint)
    with checkpoints.locked() if ranks_here().is_first else nullcontext():
        with torch.random.fork_rng():
            torch.manual_seed(job.seed)
            network = _starting_network(job, lesson.work)
            state = new_training_state(network, job.method, job.data, settings=job.settings, teacher=job.teacher)
        seconds = _resume_(state, checkpoints)
        if state.epoch:
            # Killed between a checkpoint and its report, the tracker would lack the epoch; told twice it does no harm.
            lesson.run.log_epoch(state.epoch, job.curves(state.history[-1]), seed=job.curve_seed)
            print(f"{job.label}: continuing after epoch {state.epoch}/{job.settings.epochs}", flush=True)
        else:
            print(f"{job.label}: {job.data.views.describe(job.settings.epochs)}", flush=True)
        yield _Opened(lesson, state, checkpoints, time.monotonic() - seconds)


def _starting_network(job: Job, work: Path) -> nn.Module:
    if job.continuation is None:
        return build_for(job.model, job.manifest, replace_head=True)
    before = job.continuation.before
    saved = CheckpointFolder(work, before.fingerprint).load()
    if saved is None or saved["epoch"] < before.settings.epochs:
        raise TrainingError(f"{job.label}: the checkpoints of {before.label} in {work} are gone; run the stage again")
    network = build_for(before.model.architecture(), before.manifest, replace_head=True)
    network.load_state_dict(saved["best_weights"])
    return job.continuation.changed(network, job)


@contextmanager
def tracked_training(root: Path, name: str, *, stage: str, work: Path, lineage: Lineage) -> Generator[Run]:
    """The tracking run of the training that `work` belongs to; one that was interrupted is continued.

    Of several ranks the first tracks.
    """
    if not ranks_here().is_first:
        yield Run(None, None, Nowhere())
        return
    noted = work / "run.json"
    try:
        earlier = read_json(noted, made_by=stage)["run_id"]
    except ArtifactError:  # missing in a first run; damaged, it costs a second run on the tracker and no more
        earlier = None
    with track(root, name=name, stage=stage, run_id=earlier, tags=lineage) as run:
        write_json(noted, {"run_id": run.id})
        yield run


def track_data(run: Run, manifest: Manifest) -> None:
    """Note with the run which images it trains on and is validated on."""
    digest = manifest.fingerprint[:16]
    run.log_dataset("train", digest=digest, num_rows=manifest.splits["train"].num_images, context="training")
    run.log_dataset(
        "validation", digest=digest, num_rows=manifest.splits["validation"].num_images, context="validation"
    )


def epoch_metrics(report: EpochReport) -> dict[str, float]:
    """One epoch under the tracker's names; the prefixes become sections of charts."""
    return {
        "train/loss": report.train_loss,
        "train/hard": report.train_hard,
        "train/soft": report.train_soft,
        "validation/accuracy_top1": report.validation_accuracy_top1,
        "validation/loss": report.validation_loss,
        "learning_rate": report.learning_rate,
        "images_per_second_train": report.images_per_second,
    }


def _resume_(state: TrainingState, checkpoints: CheckpointFolder) -> float:
    """Bring the state to the newest checkpoint, in place; the seconds trained before."""
    saved = agreed(checkpoints.load() if ranks_here().is_first else None)
    if saved is None:
        return 0.0
    state.load_state_dict(saved)
    return float(saved["train_seconds"])


def build_for(model: ModelSource, manifest: Manifest, *, replace_head: bool) -> Network:
    """A network for the classes, the image size and the pixel statistics of a data set."""
    return build_network(
        model,
        num_classes=len(manifest.classes),
        image_size=(manifest.height, manifest.width),
        statistics=Statistics(mean=manifest.mean, std=manifest.std),
        replace_head=replace_head,
    )
