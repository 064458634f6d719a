"""A network in the form in which it is traced: raw pixels in, plain operators inside."""

from __future__ import annotations

import copy
import sys

import torch
from torch import Tensor, nn


def traceable(network: nn.Module) -> nn.Module:
    """A copy that takes uint8 images (B H W 3) and answers with logits (B C); the network itself is not changed.

    On the CPU, in float32 and evaluation mode, in contiguous memory: a network in channels-last memory leaves a
    strided view in the graph that some runtimes cannot load.
    """
    copied = copy.deepcopy(network).cpu().float().requires_grad_(False)
    copied = copied.to(memory_format=torch.contiguous_format)
    copied = _with_branches_merged(copied)
    _replace_adaptive_pooling_(copied)
    return _RawImages(copied).eval()


class _RawImages(nn.Module):
    """Stored pixels to what the network takes: float32 in [0, 1], channels first."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network((image.permute(0, 3, 1, 2).float() / 255).contiguous())


class _GlobalMean(nn.Module):
    """What AdaptiveAvgPool2d(1) computes, as one operator whatever the memory layout."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3), keepdim=True)


def _replace_adaptive_pooling_(network: nn.Module) -> None:
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(module, name, _GlobalMean())


def _with_branches_merged(network: nn.Module) -> nn.Module:
    """Fold the parallel branches of timm's re-parameterisable blocks into one convolution, in place.

    The exporter folds batch normalisation into convolutions, but not that of an identity branch. A network with
    such blocks cannot exist unless timm is imported, and nobody else should wait for that import.
    """
    if "timm" not in sys.modules:
        return network
    from timm.utils.model import reparameterize_model

    return reparameterize_model(network, inplace=True)
