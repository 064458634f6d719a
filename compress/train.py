"""The one training loop, for teachers, students and baselines alike.

Everything random is a pure function of (seed, epoch): the order of images, their views, dropout. A run resumed after
an epoch therefore goes on to the same bits as one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from compress.batches import TrainingData, epoch_batches, on_device
from compress.data.mixing import Mixing
from compress.data.prepared import PreparedSplit
from compress.device import DeviceName, Precision, place, resolve_device, resolve_precision
from compress.errors import TrainingError
from compress.methods import Method
from compress.objective import Objective, StepInput, bind
from compress.optimization import SGD, Cosine, Optimizer, Schedule, set_learning_rate_
from compress.settings import Fraction, PositiveFloat, PositiveInt, Settings
from compress.teacher_logits import TeacherAnswers
from compress.tensors import as_float_images
from compress.types import LossTerms

VALIDATION_BATCH = 256
STEPS_PER_REPORT = 20


class TrainSettings(Settings):
    """How a network is trained, whatever the loss."""

    epochs: PositiveInt = 20
    batch_size: PositiveInt = 64
    optimizer: Optimizer = SGD()
    schedule: Schedule = Cosine()
    gradient_clip_norm: PositiveFloat | None = None
    """Gradients longer than this are scaled down to it."""
    mixing: Mixing | None = None
    """Blend the images and labels of a batch (mixup, CutMix); needs a teacher that runs online, or none."""
    ema_decay: Fraction | None = None
    """Keep an exponential moving average of the weights with this decay and evaluate that; 0.999 is usual."""
    precision: Precision = "auto"
    """Precision of convolutions and matrix products; the loss is computed in float32 always."""
    device: DeviceName = "auto"
    threads: PositiveInt | None = None
    """CPU threads; by default all cores. A fixed number gives the same bits on machines with more or fewer cores, and
    1 is fastest for tiny networks."""


class StepReport(NamedTuple):
    """A sign of life inside an epoch."""

    epoch: int
    num_images: int
    """Images of this epoch that are done."""
    images_per_second: float


class EpochReport(NamedTuple):
    """What one epoch gave. Epochs count from 1; losses in nats, accuracy in [0, 1]."""

    epoch: int
    train_loss: float
    train_hard: float
    train_soft: float
    validation_accuracy_top1: float
    validation_loss: float
    learning_rate: float
    """At the last step."""
    images_per_second: float
    """Of training, validation not counted."""


@dataclass
class TrainingState:
    """Everything that changes while training; the only mutable value here."""

    network: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: AveragedModel | None
    epoch: int = 0
    """Finished epochs."""
    history: list[EpochReport] = field(default_factory=list)
    best_epoch: int = 0
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    """Weights at the epoch with the highest validation accuracy; the earliest of several."""

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and saved: the moving average where there is one."""
        return self.network if self.average is None else self.average.module

    def state_dict(self) -> dict[str, Any]:
        """All of it, as a checkpoint holds it."""
        return {
            "network": self.network.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "epoch": self.epoch,
            "history": [tuple(report) for report in self.history],
            "best_epoch": self.best_epoch,
            "best_weights": self.best_weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.network.load_state_dict(state["network"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.epoch = state["epoch"]
        self.history = [EpochReport(*values) for values in state["history"]]
        self.best_epoch, self.best_weights = state["best_epoch"], state["best_weights"]


def new_training_state(
    network: nn.Module,
    method: Method,
    data: TrainingData,
    *,
    settings: TrainSettings,
    teacher: TeacherAnswers | None = None,
) -> TrainingState:
    """Put a network on its device with what it is to learn and an optimiser; sets the process's number of CPU threads.

    Raises:
        DeviceError: the device or precision asked for is not there.
        ParamsError: stored answers where the method or mixed images need the teacher itself.
        ModelError: the networks lack the features that the method compares.
        ValueError: a method that needs a teacher got none, or the other way round.
    """
    objective = bind(method, network, data.train, teacher=teacher, mixing=settings.mixing)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = resolve_device(settings.device)
    dtype = resolve_precision(settings.precision, device)
    network = place(network, device)
    objective = objective.to(device)
    average = None
    if settings.ema_decay is not None:
        # Averaging the buffers too keeps batch-norm statistics in step with the averaged weights.
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay), use_buffers=True)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    optimizer = settings.optimizer.build(nn.ModuleList([network, objective]))
    return TrainingState(network, objective, optimizer, scaler, average)


def train_epochs(
    state: TrainingState, data: TrainingData, *, settings: TrainSettings, seed: int
) -> Iterator[StepReport | EpochReport]:
    """Train from where `state` stands to the last epoch, handing out reports; `state` is current at each EpochReport.

    Raises:
        TrainingError: the loss is no longer finite.
    """
    for _, report in train_together([Trainee(state, settings)], data, seed=seed):
        yield report


class Trainee(NamedTuple):
    """One of several networks that train side by side."""

    state: TrainingState
    settings: TrainSettings


def train_together(
    trainees: Sequence[Trainee], data: TrainingData, *, seed: int
) -> Iterator[tuple[int, StepReport | EpochReport]]:
    """Train several networks on the same batches, handing out reports with the network's place among `trainees`.

    Batches are decoded and augmented once, and a live teacher is asked once. Each network comes out bit for bit as if
    it had trained alone: nothing random is shared. One that is ahead, from a checkpoint, waits for the others.

    Raises:
        ValueError: the networks do not share batch size, mixing, device and threads.
        TrainingError: a loss is no longer finite.
    """
    shared = {
        (each.settings.batch_size, each.settings.mixing, _device(each), each.settings.threads) for each in trainees
    }
    if len(shared) > 1:
        raise ValueError(f"networks trained together share batch size, mixing, device and threads, got {shared}")
    for epoch in range(max((each.settings.epochs for each in trainees), default=0)):
        active = {
            number: each
            for number, each in enumerate(trainees)
            if each.state.epoch == epoch and epoch < each.settings.epochs
        }
        if active:
            yield from _epoch(active, data, epoch=epoch, seed=seed)


def _epoch(
    active: Mapping[int, Trainee], data: TrainingData, *, epoch: int, seed: int
) -> Iterator[tuple[int, StepReport | EpochReport]]:
    settings, device = next(iter(active.values())).settings, _device(next(iter(active.values())))
    num_steps = math.ceil(len(data.train) / settings.batch_size)
    # Summed on the device: reading a value at every step would stop a GPU each time.
    sums = {number: torch.zeros(2, dtype=torch.float64, device=device) for number in active}
    num_images, started = 0, time.perf_counter()
    for step, batch in enumerate(epoch_batches(data, settings.batch_size, epoch=epoch, seed=seed)):
        batch_input = on_device(batch, settings.mixing, device, seed=seed, epoch=epoch, step=step)
        for number, trainee in active.items():
            with _seeded(seed, epoch, step, device):
                terms = _step(trainee, batch_input, progress=epoch + step / num_steps)
            sums[number] += torch.stack(terms).double() * len(batch.indices)
        num_images += len(batch.indices)
        if step % STEPS_PER_REPORT == STEPS_PER_REPORT - 1:
            speed = num_images * len(active) / (time.perf_counter() - started)
            for number in active:
                yield number, StepReport(epoch + 1, num_images, speed)
    totals = {number: (values / num_images).tolist() for number, values in sums.items()}
    speed = num_images * len(active) / (time.perf_counter() - started)
    for number, trainee in active.items():
        hard, soft = totals[number]
        _check_finite(hard + soft, epoch + 1)
        accuracy, loss = validate(trainee.state.evaluated, data.validation)
        rate = trainee.state.optimizer.param_groups[0]["lr"]
        report = EpochReport(epoch + 1, hard + soft, hard, soft, accuracy, loss, rate, speed)
        _finish_epoch_(trainee.state, report)
        yield number, report


def _device(trainee: Trainee) -> torch.device:
    return next(trainee.state.network.parameters()).device


def _step(trainee: Trainee, batch: StepInput, *, progress: float) -> LossTerms:
    """One optimiser step, `progress` epochs into the run; the terms come back detached."""
    state, settings = trainee
    factor = settings.schedule.factor(progress, settings.epochs)
    set_learning_rate_(state.optimizer, settings.optimizer.learning_rate * factor)
    state.network.train()
    terms = state.objective(state.network, batch, resolve_precision(settings.precision, batch.images.device))
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(terms.total).backward()
    if settings.gradient_clip_norm is not None:
        state.scaler.unscale_(state.optimizer)
        trained = [*state.network.parameters(), *state.objective.parameters()]
        nn.utils.clip_grad_norm_(trained, settings.gradient_clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.average is not None:
        state.average.update_parameters(state.network)
    return LossTerms(terms.hard.detach(), terms.soft.detach())


@torch.inference_mode()
def validate(network: nn.Module, split: PreparedSplit) -> tuple[float, float]:
    """Top-1 accuracy and mean cross-entropy of a network on a split, in float32."""
    network.eval()
    device = next(network.parameters()).device
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for images, labels in split.batches(VALIDATION_BATCH):
        logits = network(as_float_images(images, device)).float()
        labels = labels.to(device)
        sums[0] += (logits.argmax(dim=1) == labels).sum()
        sums[1] += F.cross_entropy(logits, labels, reduction="sum")
    accuracy, loss = (sums / len(split)).tolist()
    return accuracy, loss


def _finish_epoch_(state: TrainingState, report: EpochReport) -> None:
    state.epoch = report.epoch
    state.history.append(report)
    best = max(state.history, key=lambda each: (each.validation_accuracy_top1, -each.epoch))
    if best is report:
        state.best_epoch = report.epoch
        state.best_weights = {name: value.detach().clone() for name, value in state.evaluated.state_dict().items()}


def _check_finite(loss: float, epoch: int) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss became {loss} in epoch {epoch}; lower optimizer.learning_rate, add schedule.warmup_epochs, "
            "or set gradient_clip_norm; the checkpoint of the epoch before is kept"
        )


@contextmanager
def _seeded(seed: int, epoch: int, step: int, device: torch.device) -> Generator[None]:
    """Dropout and the like draw from (seed, epoch, step); the caller's generators stay as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence((seed, epoch, step)).generate_state(1, np.uint64)[0] >> 1))
        yield
