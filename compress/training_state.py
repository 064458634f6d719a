"""What a training starts from and what it consists of: settings, state and reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, final

import torch
from pydantic import model_validator
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from compress.batches import TrainingData
from compress.data.mixing import Mixing
from compress.device import DeviceName, Precision, keep_freed_memory, place, resolve_device, resolve_precision
from compress.distributed import check_batch_size, shared_learner
from compress.methods import Method
from compress.micro_batches import check_micro_batches
from compress.non_finite import NonFinite, Setbacks, Stop
from compress.objective import Objective, StepInput, bind
from compress.optimization import SGD, Cosine, Optimizer, Schedule
from compress.ranks import ALONE, check_device, ranks_here
from compress.settings import Fraction, PositiveFloat, PositiveInt, Settings
from compress.teacher_logits import TeacherAnswers
from compress.types import LossTerms


class TrainSettings(Settings):
    """How a network is trained, whatever the loss."""

    epochs: PositiveInt = 20
    batch_size: PositiveInt = 64
    micro_batch_size: PositiveInt | None = None
    """Images that go through the network at once; None: the whole batch. The gradients of a batch's pieces add up to
    those of the batch, in less memory. Batch normalisation sees each piece alone, so that its statistics are those of
    a smaller batch; methods that compare the images of a batch with each other can not be used."""
    optimizer: Optimizer = SGD()
    schedule: Schedule = Cosine()
    gradient_clip_norm: PositiveFloat | None = None
    """Gradients longer than this are scaled down to it."""
    mixing: Mixing | None = None
    """Blend the images and labels of a batch (mixup, CutMix); needs a teacher that runs online, or none."""
    non_finite: NonFinite = Stop()
    """What becomes of a step whose loss or gradient is NaN or infinite: stop ends the training, skip takes the step
    back, resume begins the epoch again at a lower learning rate."""
    ema_decay: Fraction | None = None
    """Keep an exponential moving average of the weights with this decay and evaluate that; 0.999 is usual."""
    precision: Precision = "auto"
    """Precision of convolutions and matrix products; the loss is computed in float32 always."""
    device: DeviceName = "auto"
    data_on_gpu: Literal["auto", "off"] = "auto"
    """auto: images and the teacher's stored answers that fit into half of a GPU's free memory stay there. No effect on
    a CPU."""
    cuda_graph: Literal["auto", "off"] = "auto"
    """auto: a GPU replays a recording of the step, several times as fast for small networks. Networks with dropout and
    methods on features are stepped without. No effect on a CPU."""
    threads: PositiveInt | None = None
    """CPU threads; by default all cores. A fixed number gives the same bits on machines with more or fewer cores, and
    1 is fastest for tiny networks."""

    @model_validator(mode="after")
    def _pieces_are_smaller(self) -> TrainSettings:
        if self.micro_batch_size is not None and self.micro_batch_size >= self.batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} has no effect with batch_size {self.batch_size}; "
                "make it smaller, or leave it out"
            )
        return self


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


@final
class Learner(nn.Module):
    """A network with what it is to learn: a batch in, the terms of the loss out."""

    def __init__(self, network: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.network = network
        self.objective = objective

    def forward(self, batch: StepInput, dtype: torch.dtype) -> LossTerms:
        return self.objective(self.network, batch, dtype)


@dataclass
class TrainingState:
    """Everything that changes while training; the only mutable value here."""

    network: nn.Module
    objective: Objective
    learner: nn.Module
    """What a step runs: a `Learner` of the two above; of several ranks, what does the same for all of them."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: AveragedModel | None
    epoch: int = 0
    """Finished epochs."""
    history: list[EpochReport] = field(default_factory=list)
    best_epoch: int = 0
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    """Weights at the epoch with the highest validation accuracy; the earliest of several."""
    setbacks: Setbacks = field(default_factory=Setbacks)
    """What was not finite and how it was dealt with."""

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
            "setbacks": self.setbacks.state_dict(),
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
        self.setbacks = Setbacks(**state["setbacks"])


def new_training_state(
    network: nn.Module,
    method: Method,
    data: TrainingData,
    *,
    settings: TrainSettings,
    teacher: TeacherAnswers | None = None,
) -> TrainingState:
    """Put a network on its device with what it is to learn and an optimiser; sets the process's number of CPU threads.

    Within `joined_ranks` it is this rank's state of the training of all ranks.

    Raises:
        DeviceError: the device or precision asked for is not there, or there are more ranks than GPUs.
        ParamsError: stored answers where the method or mixed images need the teacher itself; a batch too small for
            the ranks.
        ModelError: the networks lack the features that the method compares.
        ValueError: a method that needs a teacher got none, or the other way round.
    """
    check_micro_batches(method, settings.micro_batch_size)
    objective = bind(method, network, data.train, teacher=teacher, mixing=settings.mixing)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = resolve_device(settings.device)
    dtype = resolve_precision(settings.precision, device)
    if device.type == "cpu":
        keep_freed_memory()
    network = place(network, device)
    objective = objective.to(device)
    learner: nn.Module = Learner(network, objective)
    optimizer = settings.optimizer.build(learner)
    ranks = ranks_here()
    if ranks != ALONE:
        check_batch_size(settings.batch_size, ranks)
        check_device(device)
        learner = shared_learner(network, objective, ranks)
    average = None
    if settings.ema_decay is not None:
        # Averaging the buffers too keeps batch-norm statistics in step with the averaged weights.
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay), use_buffers=True)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    return TrainingState(network, objective, learner, optimizer, scaler, average)


class Trainee(NamedTuple):
    """One of several networks that train side by side."""

    state: TrainingState
    settings: TrainSettings
