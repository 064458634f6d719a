"""Train one network to the end: checkpoints, progress, tracking and the files that a training stage leaves."""

from __future__ import annotations

import csv
import inspect
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pydantic import JsonValue

import compress.data.counter_hash
import compress.data.decoding
import compress.data.prepared
import compress.data.preprocessing
import compress.data.view_schedule
import compress.data.views
import compress.methods.base
import compress.optimization
import compress.train
from compress.artifact import ModelCard, save_model
from compress.checkpoint import CheckpointFolder
from compress.data.manifest import Manifest
from compress.files import read_json, write_json
from compress.fingerprint import fingerprint, fingerprint_of_files
from compress.methods import TeacherFreeMethod, TeacherMethod
from compress.models import ModelSource, Network, Statistics, build_network, count_flops, count_parameters
from compress.teacher_logits import TeacherAnswers
from compress.train import EpochReport, TrainingData, TrainingState, TrainSettings, new_training_state, train_epochs
from pipelines.progress import training_progress
from pipelines.tracking import Run, track

HISTORY_COLUMNS = ("seed", *EpochReport._fields)


Lineage = dict[str, str]
"""Hashes of what a network was made from, by name."""


@dataclass(frozen=True)
class Job:
    """One network to train, and everything that determines what comes out."""

    label: str
    model: ModelSource
    method: TeacherMethod | TeacherFreeMethod
    settings: TrainSettings
    seed: int
    data: TrainingData
    manifest: Manifest
    lineage: Lineage
    teacher: TeacherAnswers | None = None
    curve_seed: int | None = None
    """Seed to tell this run's curves from those of the student's first seed; None for the first."""

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
                "code": code_fingerprint(type(self.method)),
                "torch": torch.__version__,
                "threads": self.settings.threads or torch.get_num_threads(),
            }
        )


@dataclass(frozen=True)
class Trained:
    """A finished training run."""

    seed: int
    history: tuple[EpochReport, ...]
    train_seconds: float
    last: EpochReport
    best: EpochReport
    fingerprint: str

    def summary(self) -> dict[str, JsonValue]:
        """What training.json says about it."""
        return {
            "seed": self.seed,
            "train_seconds": round(self.train_seconds, 3),
            "fingerprint": self.fingerprint,
            "last": _summary(self.last),
            "best": _summary(self.best),
        }


def train(job: Job, *, work: Path, folders: Mapping[str, Path], run: Run) -> Trained:
    """Train to the last epoch, from the newest checkpoint of this very job if there is one, and save the artifacts.

    `folders` says where `last` and `best` go. `work` holds the checkpoints, which stay until the caller removes them.
    """
    checkpoints = CheckpointFolder(work, job.fingerprint)
    with checkpoints.locked():
        with torch.random.fork_rng():
            torch.manual_seed(job.seed)
            network = build_for(job.model, job.manifest, replace_head=True)
        state = new_training_state(network, job.settings)
        seconds = _resume_(state, checkpoints)
        if state.epoch:
            print(f"{job.label}: continuing after epoch {state.epoch}/{job.settings.epochs}", flush=True)
        started = time.monotonic() - seconds
        reports = train_epochs(state, job.method, job.data, settings=job.settings, seed=job.seed, teacher=job.teacher)
        for report in training_progress(
            reports, label=job.label, num_epochs=job.settings.epochs, num_images=len(job.data.train)
        ):
            checkpoints.save(report.epoch, state.state_dict() | {"train_seconds": time.monotonic() - started})
            run.log_epoch(report.epoch, epoch_metrics(report), seed=job.curve_seed)
        trained = Trained(
            seed=job.seed,
            history=tuple(state.history),
            train_seconds=time.monotonic() - started,
            last=state.history[-1],
            best=state.history[state.best_epoch - 1],
            fingerprint=job.fingerprint,
        )
        _save(job, state, trained, folders)
    return trained


@contextmanager
def tracked_training(root: Path, name: str, *, stage: str, work: Path, lineage: Lineage) -> Generator[Run]:
    """The tracking run of the training that `work` belongs to; one that was interrupted is continued."""
    noted = work / "run.json"
    earlier = read_json(noted, made_by=stage)["run_id"] if noted.is_file() else None
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


def write_training_files(folder: Path, runs: Sequence[Trained], facts: Mapping[str, Any]) -> None:
    """Leave training.json and history.csv: settings, one summary per seed, one row per epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "training.json", {**facts, "seeds": [run.summary() for run in runs]})
    with (folder / "history.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HISTORY_COLUMNS)
        for run in runs:
            writer.writerows((run.seed, *(round(value, 6) for value in report)) for report in run.history)


def code_fingerprint(method: type) -> str:
    """Hash of the source files that decide what training computes."""
    modules: list[ModuleType] = [
        compress.train,
        compress.optimization,
        compress.data.counter_hash,
        compress.data.decoding,
        compress.data.prepared,
        compress.data.preprocessing,
        compress.data.view_schedule,
        compress.data.views,
        compress.methods.base,
    ]
    files = [Path(inspect.getfile(module)) for module in modules]
    return fingerprint_of_files([*files, Path(inspect.getfile(method))])


def _resume_(state: TrainingState, checkpoints: CheckpointFolder) -> float:
    """Bring the state to the newest checkpoint, in place; the seconds trained before."""
    saved = checkpoints.load()
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


def card_of(
    model: ModelSource,
    network: Network,
    manifest: Manifest,
    *,
    report: EpochReport,
    identity: str,
    lineage: Lineage,
) -> ModelCard:
    """The card of a network as it stands after an epoch; seed and settings are added by whoever trained it."""
    return ModelCard(
        architecture=model.architecture(),
        classes=manifest.classes,
        height=manifest.height,
        width=manifest.width,
        mean=network.statistics.mean,
        std=network.statistics.std,
        preprocessing=manifest.preprocessing.model_dump(mode="json"),
        epoch=report.epoch,
        metrics={
            "accuracy_top1_validation": report.validation_accuracy_top1,
            "loss_validation": report.validation_loss,
        },
        num_parameters=count_parameters(network),
        flops=count_flops(network, (manifest.height, manifest.width)),
        fingerprint=identity,
        lineage=lineage,
    )


def _save(job: Job, state: TrainingState, trained: Trained, folders: Mapping[str, Path]) -> None:
    network = state.evaluated
    assert isinstance(network, Network)
    for which, folder in folders.items():
        report = trained.last if which == "last" else trained.best
        if which == "best":
            network.load_state_dict(state.best_weights)
        card = card_of(job.model, network, job.manifest, report=report, identity=job.fingerprint, lineage=job.lineage)
        training = {"method": job.method.model_dump(mode="json"), **job.settings.model_dump(mode="json")}
        save_model(folder, network, card.model_copy(update={"training": training, "seed": job.seed}))


def _summary(report: EpochReport) -> dict[str, JsonValue]:
    return {
        "epoch": report.epoch,
        "accuracy_top1_validation": round(report.validation_accuracy_top1, 6),
        "loss_validation": round(report.validation_loss, 6),
    }
