"""A small plain convolutional network, for tiny images and for tests."""

from __future__ import annotations

from typing import Annotated, Literal, final

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from compress.models.layers import conv3x3, global_mean, init_convolutions_
from compress.models.network import Backbone
from compress.models.source import Created, Source
from compress.settings import PositiveInt
from compress.types import Answer, Features, FloatImages, Logits


@final
class Cnn(Source):
    """3x3 convolution, batch normalisation, ReLU for each entry of `channels`; then a mean over pixels and a linear."""

    source: Literal["cnn"] = "cnn"
    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (8, 16, 32)
    """Channels of each convolution; the first keeps the image size, every further one halves it."""

    @property
    def label(self) -> str:
        return f"cnn {'-'.join(map(str, self.channels))}"

    def weight_settings(self) -> tuple[str, ...]:
        return () if self.checkpoint is None else ("checkpoint",)

    def create(self, *, num_classes: int, image_size: tuple[int, int], replace_head: bool) -> Created:
        return Created(PlainCnn(self.channels, num_classes=num_classes), statistics=None)

    def architecture(self) -> Cnn:
        return Cnn(channels=self.channels)


@final
class PlainCnn(Backbone):
    """See `Cnn`. The maps of its features are the activated outputs of each convolution."""

    def __init__(self, channels: tuple[int, ...], *, num_classes: int) -> None:
        super().__init__()
        inputs = (3, *channels)
        self.stages = nn.ModuleList(
            nn.Sequential(conv3x3(inputs[i], channels[i], stride=1 if i == 0 else 2), nn.BatchNorm2d(channels[i]))
            for i in range(len(channels))
        )
        self.classifier = nn.Linear(channels[-1], num_classes)
        init_convolutions_(self)

    def _features(self, images: FloatImages) -> Features:
        current = images
        maps = []
        for stage in self.stages:
            current = F.relu(stage(current))
            maps.append(current)
        return Features(global_mean(current), tuple(maps), current)

    def answer(self, images: FloatImages) -> Answer:
        features = self._features(images)
        return Answer(self.classifier(features.pooled), features)

    def forward(self, images: FloatImages) -> Logits:
        return self.answer(images).logits
