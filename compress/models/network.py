"""The one network type: pixels in [0, 1] in, logits out, whatever the backbone inside.

A network normalises its own images, so a teacher and a student may want different statistics and an exported file
needs no preprocessing beside it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from compress.settings import PositiveFloat, Settings
from compress.types import Answer, FloatImages, Logits

FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]


class Statistics(Settings):
    """Per-channel statistics of RGB pixels in [0, 1]; a network subtracts the mean and divides by the deviation."""

    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    """Mean of red, green and blue."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    """Standard deviation of red, green and blue."""


class Backbone(nn.Module, ABC):
    """A classifier of normalised images that can show its features."""

    @abstractmethod
    def forward(self, images: FloatImages) -> Logits:
        """Normalised images to logits."""

    @abstractmethod
    def answer(self, images: FloatImages) -> Answer:
        """Normalised images to logits and features, in one forward pass.

        Raises:
            ModelError: this network has no interface to its features.
        """


@final
class Network(nn.Module):
    """Normalisation and a backbone. State-dict keys are those of the backbone behind `backbone.`."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, statistics: Statistics) -> None:
        super().__init__()
        self.statistics = statistics
        # Not persistent: the statistics are settings, kept on the card as exact decimals, and not trained weights.
        self.register_buffer("mean", _channels(statistics.mean), persistent=False)
        self.register_buffer("std", _channels(statistics.std), persistent=False)
        self.backbone = backbone

    def forward(self, images: FloatImages) -> Logits:
        """Pixels in [0, 1] to logits."""
        return self.backbone(self._normalised(images))

    def answer(self, images: FloatImages) -> Answer:
        """Pixels in [0, 1] to logits and features, in one forward pass.

        Raises:
            ModelError: the backbone has no interface to its features.
        """
        return self.backbone.answer(self._normalised(images))

    def _normalised(self, images: FloatImages) -> FloatImages:
        return (images - self.mean) / self.std


@torch.no_grad()
def probe(network: Network, image_size: tuple[int, int]) -> Answer:
    """What a network answers to one blank image; it stays as it was, batch statistics and mode included.

    Raises:
        ModelError: the backbone has no interface to its features.
    """
    height, width = image_size
    was_training = network.training
    network.eval()
    try:
        return network.answer(torch.zeros(1, 3, height, width, device=network.mean.device))
    finally:
        network.train(was_training)


def _channels(values: tuple[float, float, float]) -> Float[Tensor, "1 3 1 1"]:
    return torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)
