"""The one training loop, for teachers, students and baselines alike.

Everything random is a pure function of (seed, epoch): the order of images, their views, dropout. A run resumed after
an epoch therefore goes on to the same bits as one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from compress.data.prepared import PreparedSplit
from compress.data.view_schedule import ViewSettings
from compress.data.views import view_images
from compress.device import DeviceName, Precision, autocast, place, resolve_device, resolve_precision
from compress.errors import TrainingError
from compress.methods import TeacherFreeMethod, TeacherMethod
from compress.optimization import SGD, Cosine, Optimizer, Schedule, set_learning_rate_
from compress.settings import Fraction, PositiveFloat, PositiveInt, Settings
from compress.teacher_logits import TeacherAnswers
from compress.tensors import as_float_images
from compress.types import FloatImages, IndexArray, Labels, LossTerms

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
    ema_decay: Fraction | None = None
    """Keep an exponential moving average of the weights with this decay and evaluate that; 0.999 is usual."""
    precision: Precision = "auto"
    """Precision of convolutions and matrix products; the loss is computed in float32 always."""
    device: DeviceName = "auto"
    threads: PositiveInt | None = None
    """CPU threads; by default all cores. A fixed number gives the same bits on machines with more or fewer cores, and
    1 is fastest for tiny networks."""


@dataclass(frozen=True)
class TrainingData:
    """What a network sees: train images through views, validation images as they are."""

    train: PreparedSplit
    validation: PreparedSplit
    views: ViewSettings


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
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.epoch = state["epoch"]
        self.history = [EpochReport(*values) for values in state["history"]]
        self.best_epoch, self.best_weights = state["best_epoch"], state["best_weights"]


def new_training_state(network: nn.Module, settings: TrainSettings) -> TrainingState:
    """Put the network on its device and give it an optimiser; sets the process's number of CPU threads.

    Raises:
        DeviceError: the device or precision asked for is not there.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = resolve_device(settings.device)
    dtype = resolve_precision(settings.precision, device)
    network = place(network, device)
    average = None
    if settings.ema_decay is not None:
        # Averaging the buffers too keeps batch-norm statistics in step with the averaged weights.
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay), use_buffers=True)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    return TrainingState(network, settings.optimizer.build(network), scaler, average)


def train_epochs(
    state: TrainingState,
    method: TeacherMethod | TeacherFreeMethod,
    data: TrainingData,
    *,
    settings: TrainSettings,
    seed: int,
    teacher: TeacherAnswers | None = None,
) -> Iterator[StepReport | EpochReport]:
    """Train from where `state` stands to the last epoch, handing out reports; `state` is current at each EpochReport.

    Raises:
        ValueError: a method that needs a teacher got none, or the other way round.
        TrainingError: the loss is no longer finite (while iterating).
    """
    if isinstance(method, TeacherMethod) != (teacher is not None):
        raise ValueError(f"{type(method).__name__} and teacher={teacher} do not go together")
    return _epochs(state, method, data, settings, seed, teacher)


def _epochs(
    state: TrainingState,
    method: TeacherMethod | TeacherFreeMethod,
    data: TrainingData,
    settings: TrainSettings,
    seed: int,
    teacher: TeacherAnswers | None,
) -> Iterator[StepReport | EpochReport]:
    loss_function = _BoundLoss(method, teacher)
    num_steps = math.ceil(len(data.train) / settings.batch_size)
    for epoch in range(state.epoch, settings.epochs):
        sums = torch.zeros(2, dtype=torch.float64, device=next(state.network.parameters()).device)
        num_images, started = 0, time.perf_counter()
        learning_rate = 0.0
        for step, batch in enumerate(epoch_batches(data, settings.batch_size, epoch=epoch, seed=seed)):
            factor = settings.schedule.factor(epoch + step / num_steps, settings.epochs)
            learning_rate = settings.optimizer.learning_rate * factor
            set_learning_rate_(state.optimizer, learning_rate)
            with _seeded(seed, epoch, step, sums.device):
                terms = _step(state, loss_function, batch, settings)
            # Summed on the device: reading a value at every step would stop a GPU each time.
            sums += torch.stack(terms).double() * len(batch.indices)
            num_images += len(batch.indices)
            if step % STEPS_PER_REPORT == STEPS_PER_REPORT - 1:
                yield StepReport(epoch + 1, num_images, num_images / (time.perf_counter() - started))
        hard, soft = (sums / num_images).tolist()
        speed = num_images / (time.perf_counter() - started)
        _check_finite(hard + soft, epoch + 1)
        accuracy, loss = validate(state.evaluated, data.validation)
        report = EpochReport(epoch + 1, hard + soft, hard, soft, accuracy, loss, learning_rate, speed)
        _finish_epoch_(state, report)
        yield report


class Batch(NamedTuple):
    """One training batch; indices and slots stay on the host."""

    images: torch.Tensor
    labels: torch.Tensor
    indices: IndexArray
    slots: IndexArray


def epoch_batches(data: TrainingData, batch_size: int, *, epoch: int, seed: int) -> Iterator[Batch]:
    """All train images once, in an order and through views that follow from seed and epoch (counted from 0)."""
    order = np.random.default_rng((seed, epoch)).permutation(len(data.train)).astype(np.int64)
    slots = data.views.slots(len(order), epoch)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        if start > 0 and len(indices) == 1 < batch_size:
            return  # batch normalisation cannot learn from a single left-over image
        batch_slots = slots[start : start + batch_size]
        images = view_images(
            data.train, data.views.augmentation, indices=indices, slots=batch_slots, seed=data.views.seed
        )
        yield Batch(images, torch.from_numpy(data.train.labels[indices]), indices, batch_slots)


class _BoundLoss(NamedTuple):
    """A method with its teacher: the loop need not know which kind it has."""

    method: TeacherMethod | TeacherFreeMethod
    teacher: TeacherAnswers | None

    def __call__(self, student: torch.Tensor, labels: Labels, images: FloatImages, batch: Batch) -> LossTerms:
        if isinstance(self.method, TeacherFreeMethod):
            return self.method(student, labels)
        assert self.teacher is not None
        return self.method(student, self.teacher.logits(images, batch.indices, batch.slots), labels)


def _step(state: TrainingState, loss_function: _BoundLoss, batch: Batch, settings: TrainSettings) -> LossTerms:
    """One optimiser step; the terms come back detached."""
    device = next(state.network.parameters()).device
    images = as_float_images(batch.images, device)
    labels = batch.labels.to(device, non_blocking=True)
    state.network.train()
    with autocast(device, resolve_precision(settings.precision, device)):
        student = state.network(images)
    terms = loss_function(student.float(), labels, images, batch)
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(terms.total).backward()
    if settings.gradient_clip_norm is not None:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.network.parameters(), settings.gradient_clip_norm)
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
