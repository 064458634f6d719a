"""VGG networks (arXiv:1409.1556) with batch normalisation and one linear layer, as in the public CIFAR code bases.

State-dict keys, parameter counts and multiply-adds are those of RepDistiller and mdistiller. Deviation: the fourth
pool, there for 64-pixel images only, is there for all larger ones too.
"""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import nn

from compress.errors import ModelError
from compress.models.layers import conv3x3, global_mean, init_convolutions_
from compress.models.network import Backbone
from compress.types import Answer, Features, FloatImages, Logits

WIDTHS = (64, 128, 256, 512, 512)
MIN_SIDE = 8
FOURTH_POOL_SIDE = 64


@final
class CifarVgg(Backbone):
    """Five blocks of 3x3 convolutions, halved by max-pooling after the first three (or four) blocks."""

    def __init__(
        self, convolutions: tuple[int, int, int, int, int], *, num_classes: int, image_size: tuple[int, int]
    ) -> None:
        """`convolutions` counts those of each block; the image size fixes the number of pools.

        Raises:
            ModelError: the image is too small for three pools.
        """
        super().__init__()
        height, width = image_size
        if min(image_size) < MIN_SIDE:
            raise ModelError(
                f"a VGG network halves the image three times and needs at least {MIN_SIDE}x{MIN_SIDE} pixels, "
                f"got {height}x{width}; set a larger image size or take another network"
            )
        self.block0 = _block(convolutions[0], 3, WIDTHS[0])
        self.block1 = _block(convolutions[1], WIDTHS[0], WIDTHS[1])
        self.block2 = _block(convolutions[2], WIDTHS[1], WIDTHS[2])
        self.block3 = _block(convolutions[3], WIDTHS[2], WIDTHS[3])
        self.block4 = _block(convolutions[4], WIDTHS[3], WIDTHS[4])
        self.pool = nn.MaxPool2d(2)
        self.fourth_pool = nn.MaxPool2d(2) if min(image_size) >= FOURTH_POOL_SIDE else nn.Identity()
        self.classifier = nn.Linear(WIDTHS[4], num_classes)
        init_convolutions_(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def _features(self, images: FloatImages) -> Features:
        first = F.relu(self.block0(images))
        second = F.relu(self.block1(self.pool(first)))
        third = F.relu(self.block2(self.pool(second)))
        fourth = F.relu(self.block3(self.pool(third)))
        fifth = F.relu(self.block4(self.fourth_pool(fourth)))
        return Features(global_mean(fifth), (first, second, third, fourth, fifth), fifth)

    def answer(self, images: FloatImages) -> Answer:
        features = self._features(images)
        return Answer(self.classifier(features.pooled), features)

    def forward(self, images: FloatImages) -> Logits:
        return self.answer(images).logits


def _block(num_convolutions: int, num_inputs: int, num_outputs: int) -> nn.Sequential:
    """Convolutions with bias, each normalised, with activations between but not after them."""
    layers: list[nn.Module] = []
    for index in range(num_convolutions):
        if index > 0:
            layers.append(nn.ReLU())
        layers.append(conv3x3(num_inputs if index == 0 else num_outputs, num_outputs, bias=True))
        layers.append(nn.BatchNorm2d(num_outputs))
    return nn.Sequential(*layers)
