"""Layers and initialisations that several of our networks share."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


def conv3x3(num_inputs: int, num_outputs: int, *, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """Padded so that stride 1 keeps the size and stride 2 halves it, rounding up."""
    return nn.Conv2d(num_inputs, num_outputs, kernel_size=3, stride=stride, padding=1, bias=bias)


def conv1x1(num_inputs: int, num_outputs: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A linear map per pixel, without bias."""
    return nn.Conv2d(num_inputs, num_outputs, kernel_size=1, stride=stride, groups=groups, bias=False)


def depthwise3x3(num_channels: int, *, stride: int = 1) -> nn.Conv2d:
    """One 3x3 filter per channel, without bias."""
    return nn.Conv2d(
        num_channels, num_channels, kernel_size=3, stride=stride, padding=1, groups=num_channels, bias=False
    )


def global_mean(maps: Float[Tensor, "B D _ _"]) -> Float[Tensor, "B D"]:
    """Mean over all pixels.

    A plain mean rather than adaptive pooling: the latter turns into a chain of shape operators in exported graphs
    as soon as channels come last in memory. In training the channels are put last in words too, which changes no bit
    of the mean: its gradient then has the layout of the maps, without which the layer below takes five times as long.
    """
    if torch.compiler.is_exporting():
        return maps.mean((2, 3))  # one operator in the graph instead of two
    return maps.permute(0, 2, 3, 1).mean((1, 2))


def shuffle_channels(maps: Float[Tensor, "B D H W"], num_groups: int) -> Float[Tensor, "B D H W"]:
    """Interleave the channel groups, so that the next grouped convolution sees all of them (arXiv:1707.01083)."""
    return maps.unflatten(1, (num_groups, -1)).transpose(1, 2).flatten(1, 2)


def init_convolutions_(network: nn.Module) -> None:
    """He-normal weights over the fan-out for every convolution of `network`, in place; biases zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
