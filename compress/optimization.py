"""Optimisers and learning-rate schedules as settings.

A schedule is a pure function of the step, so a resumed run needs nothing but the step to go on exactly.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim.swa_utils import AveragedModel

from compress.settings import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Settings


class SGD(Settings):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    learning_rate: PositiveFloat = 0.05
    """Peak learning rate."""
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 5e-4
    """Applied to every parameter, as the CIFAR-100 protocols do."""

    def build(self, network: nn.Module) -> torch.optim.Optimizer:
        """One parameter group over the whole network, fused into one kernel (faster on CPU too)."""
        return torch.optim.SGD(
            network.parameters(),
            lr=self.learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            fused=True,
        )


class AdamW(Settings):
    """Adam with decoupled weight decay (arXiv 1711.05101)."""

    name: Literal["adamw"] = "adamw"
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.05
    """Applied to weight matrices and kernels; biases and normalisation parameters are left alone."""

    def build(self, network: nn.Module) -> torch.optim.Optimizer:
        """Two parameter groups: with and without weight decay."""
        parameters = [p for p in network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, fused=True)


Optimizer = Annotated[SGD | AdamW, Field(discriminator="name")]


class ScheduleBase(Settings, ABC):
    """Share of the peak learning rate over the course of training."""

    warmup_epochs: NonNegativeFloat = 0.0
    """Epochs over which the rate climbs linearly from zero to its peak."""

    def factor(self, epoch: float, num_epochs: int) -> float:
        """Multiplier of the peak rate after `epoch` epochs (fractional inside an epoch)."""
        if epoch < self.warmup_epochs:
            return epoch / self.warmup_epochs
        return self.after_warmup(epoch, num_epochs)

    @abstractmethod
    def after_warmup(self, epoch: float, num_epochs: int) -> float:
        """The multiplier once warm-up is over."""


class Constant(ScheduleBase):
    """The peak rate throughout."""

    name: Literal["constant"] = "constant"

    def after_warmup(self, epoch: float, num_epochs: int) -> float:
        return 1.0


class Cosine(ScheduleBase):
    """Half a cosine from the peak to `final_fraction` of it (arXiv 1608.03983, without restarts)."""

    name: Literal["cosine"] = "cosine"
    final_fraction: Fraction = 0.0

    def after_warmup(self, epoch: float, num_epochs: int) -> float:
        progress = (epoch - self.warmup_epochs) / max(num_epochs - self.warmup_epochs, 1e-9)
        return self.final_fraction + (1 - self.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


class Step(ScheduleBase):
    """Multiply by `decay` after each milestone."""

    name: Literal["step"] = "step"
    milestones: tuple[PositiveInt, ...] = (150, 180, 210)
    """Epochs after whose end the rate drops."""
    decay: PositiveFloat = 0.1

    def after_warmup(self, epoch: float, num_epochs: int) -> float:
        return self.decay ** sum(epoch >= milestone for milestone in self.milestones)


class OneCycle(ScheduleBase):
    """Up and down again on two half cosines (arXiv 1708.07120); momentum is left as it is."""

    name: Literal["one_cycle"] = "one_cycle"
    peak_at: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    """Share of training at which the peak rate is reached."""
    initial_fraction: Fraction = 0.04
    final_fraction: Fraction = 0.0

    def after_warmup(self, epoch: float, num_epochs: int) -> float:
        progress = min(epoch / num_epochs, 1.0)
        if progress < self.peak_at:
            return _cosine_between(self.initial_fraction, 1.0, progress / self.peak_at)
        return _cosine_between(1.0, self.final_fraction, (progress - self.peak_at) / (1 - self.peak_at))


Schedule = Annotated[Constant | Cosine | Step | OneCycle, Field(discriminator="name")]


def _cosine_between(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def update_average_(average: AveragedModel, network: nn.Module) -> None:
    """Move an average towards a network after a step; the first time it becomes the network.

    The same bits as `AveragedModel.update_parameters`, without its copy to the device for every type of tensor.
    """
    if int(average.n_averaged) == 0:  # lies on the host: `AveragedModel` was given no device
        for own, other in zip(*_averaged(average, network), strict=True):
            own.copy_(other)
    else:
        move_average_(average, network)
    average.n_averaged += 1


def move_average_(average: AveragedModel, network: nn.Module) -> None:
    """The part of `update_average_` that a device does: one launch for all floating-point tensors."""
    assert average.multi_avg_fn is not None
    pairs = list(zip(*_averaged(average, network), strict=True))
    for is_floating in (True, False):
        chosen = [pair for pair in pairs if pair[0].is_floating_point() == is_floating]
        if chosen:
            own, others = zip(*chosen, strict=True)
            average.multi_avg_fn(own, others, 0)  # the decay alone counts, not the number averaged


def _averaged(average: AveragedModel, network: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """All that is averaged, and what it is averaged from: batch statistics too."""
    own, others = ([*module.parameters(), *module.buffers()] for module in (average.module, network))
    return [each.detach() for each in own], [each.detach() for each in others]


def set_learning_rate_(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every parameter group this rate, in place."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
