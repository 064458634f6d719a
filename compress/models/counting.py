"""What a network costs."""

from __future__ import annotations

import copy

import torch
from torch import nn

from compress.models.network import Network


def count_parameters(network: Network) -> int:
    """Trainable numbers; running statistics are not counted."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_flops(network: Network, image_size: tuple[int, int]) -> int:
    """Floating-point operations to classify one image of (height, width); nothing is computed and nothing changes.

    Twice the multiply-adds of all matrix products: convolutions, linear layers, attention. Normalisation,
    activations and pooling count nothing, as is usual.
    """
    from torch.utils.flop_counter import FlopCounterMode

    shadow = _without_numbers(network).eval()
    image = torch.zeros(1, 3, *image_size, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(image)
    return counter.get_total_flops()


def _without_numbers(network: Network) -> Network:
    """A copy that has shapes but no values."""
    replaced: dict[int, torch.Tensor] = {id(buffer): buffer.to("meta") for buffer in network.buffers()}
    for parameter in network.parameters():
        replaced[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    return copy.deepcopy(network, replaced)
