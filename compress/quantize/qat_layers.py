"""Layers that compute in float32 what integers will compute later, and train.

Rounding passes gradients on as if it were not there (straight-through estimator, arXiv:1308.3432); clipping does not.
Weights have a symmetric scale per output channel that follows from the largest weight at every step. Activations have
256 levels whose step is learned from the loss (LSQ, arXiv:1902.08153) or stays as it was observed; the zero point
stays, so that zero, which convolutions pad with and ReLU cuts at, is a level exactly.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int8, Int32
from torch import Tensor, nn
from torch.nn import functional as F

NUM_STEPS = 255
"""Steps between the 256 levels of an activation."""
SMALLEST_STEP = 1e-8


class Levels(NamedTuple):
    """Integers, what one of them is worth per output channel, and the bias, not yet rounded."""

    integers: Int8[Tensor, "O ..."]
    scale: Float[Tensor, " O"]
    bias: Float[Tensor, " O"]


class Window(NamedTuple):
    """How a convolution moves over its input."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


@final
class ActivationQuantizer(nn.Module):
    """Rounds a tensor to 256 levels, or watches what passes as long as it is observing."""

    lowest: Tensor
    highest: Tensor
    zero_point: Tensor

    def __init__(self, *, is_learned: bool) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.tensor(1.0), requires_grad=is_learned)
        # As float: a moving average of weights would round integers down.
        self.register_buffer("zero_point", torch.tensor(0.0))
        self.register_buffer("lowest", torch.tensor(0.0), persistent=False)
        self.register_buffer("highest", torch.tensor(0.0), persistent=False)
        self.is_observing = True

    def finish_observing_(self) -> None:
        """Fix zero point and first step by the smallest and largest value seen; from now on, round."""
        width = float(self.highest - self.lowest)
        step = width / NUM_STEPS if width > 0 else 1.0
        with torch.no_grad():
            self.step.fill_(step)
            self.zero_point.fill_(round(-float(self.lowest) / step))
        self.is_observing = False

    def forward(self, values: Tensor) -> Tensor:
        """A tensor of any shape to one of the same."""
        if self.is_observing:
            # Both started at zero, so the range always holds it.
            self.lowest.copy_(torch.minimum(self.lowest, values.detach().min()))
            self.highest.copy_(torch.maximum(self.highest, values.detach().max()))
            return values
        # Under autocast a value may come in bfloat16, which cannot tell 256 levels apart.
        values = values.float()
        # LSQ, equation 5: without the factor the step would learn much faster than the weights.
        step = _with_gradient_times(self.step.clamp(min=SMALLEST_STEP), 1 / math.sqrt(values.numel() * NUM_STEPS))
        levels = (_rounded(values / step) + self.zero_point).clamp(0, NUM_STEPS)
        return (levels - self.zero_point) * step


@final
class BatchNorm(nn.Module):
    """Batch normalisation, alive while it trains: it normalises by the batch and follows its statistics."""

    mean: Tensor
    variance: Tensor

    def __init__(
        self, scale: Tensor, shift: Tensor, *, mean: Tensor, variance: Tensor, momentum: float, epsilon: float
    ) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale.detach().clone())
        self.shift = nn.Parameter(shift.detach().clone())
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("variance", variance.detach().clone())
        self._momentum, self._epsilon = momentum, epsilon

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return F.batch_norm(
            maps,
            self.mean,
            self.variance,
            weight=self.scale,
            bias=self.shift,
            training=self.training,
            momentum=self._momentum,
            eps=self._epsilon,
        )

    def factor(self) -> Float[Tensor, " C"]:
        """What it multiplies each channel with outside training; never zero."""
        factor = self.scale * torch.rsqrt(self.variance + self._epsilon)
        return torch.where(factor.abs() < SMALLEST_STEP, torch.full_like(factor, SMALLEST_STEP), factor)


class QuantizedLayer(nn.Module, ABC):
    """A layer with weights that are rounded to integers, and the batch normalisation behind it if there is one.

    What is rounded is the weight that is deployed, the normalisation's factor multiplied in; while training, the
    factor is taken out of the result again, for the batch to be normalised by its own statistics (section 3.2 of
    arXiv:1806.08342). Folding the normalisation away before training instead made the same training diverge.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, largest: int, norm: BatchNorm | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(torch.zeros(len(weight)) if bias is None else bias.detach().clone())
        self.norm = norm
        self._largest = largest

    def forward(self, values: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        weight = self._deployed_weight()
        step = self._by_channel(self._scale(weight))
        rounded = _rounded(weight / step) * step
        if self.norm is None:
            return self.apply_weight(values, rounded, self.bias)
        result = self.apply_weight(values, rounded, None)
        return self.norm(result / self.norm.factor().view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1))

    @abstractmethod
    def apply_weight(self, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's product with another weight of the same shape."""

    def levels(self) -> Levels:
        """Weight and bias as they will be stored."""
        with torch.no_grad():
            weight, bias = self._deployed_weight(), self.bias
            if self.norm is not None:
                bias = (bias - self.norm.mean) * self.norm.factor() + self.norm.shift
            scale = self._scale(weight)
            return Levels(torch.round(weight / self._by_channel(scale)).to(torch.int8), scale, bias.clone())

    def _deployed_weight(self) -> Tensor:
        return self.weight if self.norm is None else self.weight * self._by_channel(self.norm.factor())

    def _scale(self, weight: Tensor) -> Float[Tensor, " O"]:
        largest = weight.detach().abs().flatten(1).amax(dim=1)
        return torch.where(largest > 0, largest / self._largest, torch.ones_like(largest))

    def _by_channel(self, scale: Float[Tensor, " O"]) -> Tensor:
        return scale.view(-1, *(1,) * (self.weight.ndim - 1))


@final
class QuantizedConv2d(QuantizedLayer):
    """A two-dimensional convolution."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, largest: int, norm: BatchNorm | None, window: Window
    ) -> None:
        super().__init__(weight, bias, largest=largest, norm=norm)
        self._window = window

    def apply_weight(self, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(values, weight, bias, *self._window)


@final
class QuantizedLinear(QuantizedLayer):
    """A matrix product."""

    def apply_weight(self, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(values, weight, bias)


@final
class OnnxActivation(nn.Module):
    """An ActivationQuantizer as the ONNX operators that a runtime fuses; computes nothing in torch."""

    step: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self.register_buffer("step", quantizer.step.detach().clamp(min=SMALLEST_STEP).clone())
        self.register_buffer("zero_point", quantizer.zero_point.to(torch.uint8))

    def forward(self, values: Tensor) -> Tensor:
        stored = torch.onnx.ops.symbolic(
            "QuantizeLinear", (values, self.step, self.zero_point), dtype=torch.uint8, shape=values.shape
        )
        return torch.onnx.ops.symbolic(
            "DequantizeLinear", (stored, self.step, self.zero_point), dtype=torch.float32, shape=values.shape
        )


@final
class OnnxLayer(nn.Module):
    """A quantised layer with its integers as ONNX constants; computes nothing in torch."""

    integers: Int8[Tensor, "O ..."]
    scale: Float[Tensor, " O"]
    zero_point: Int8[Tensor, " O"]
    bias: Int32[Tensor, " O"]
    bias_scale: Float[Tensor, " O"]

    def __init__(self, layer: QuantizedLayer, *, input_step: Tensor) -> None:
        super().__init__()
        levels = layer.levels()
        bias_scale = levels.scale * input_step.detach().clamp(min=SMALLEST_STEP)
        largest = float(torch.iinfo(torch.int32).max)
        bias = torch.round(levels.bias.double() / bias_scale.double()).clamp(-largest, largest)
        self.register_buffer("integers", levels.integers)
        self.register_buffer("scale", levels.scale)
        self.register_buffer("zero_point", torch.zeros(len(levels.scale), dtype=torch.int8))
        self.register_buffer("bias", bias.to(torch.int32))
        self.register_buffer("bias_scale", bias_scale)
        self.layer = layer

    def forward(self, values: Tensor) -> Tensor:
        weight = torch.onnx.ops.symbolic(
            "DequantizeLinear",
            (self.integers, self.scale, self.zero_point),
            {"axis": 0},
            dtype=torch.float32,
            shape=self.integers.shape,
        )
        bias = torch.onnx.ops.symbolic(
            "DequantizeLinear", (self.bias, self.bias_scale), {"axis": 0}, dtype=torch.float32, shape=self.bias.shape
        )
        return self.layer.apply_weight(values, weight, bias)


def _rounded(values: Tensor) -> Tensor:
    return values + (values.round() - values).detach()


def _with_gradient_times(value: Tensor, factor: float) -> Tensor:
    return value * factor + (value - value * factor).detach()
