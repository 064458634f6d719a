"""GoogLeNet (arXiv:1409.4842) and DenseNet-121 (arXiv:1608.06993) as the Tf-KD code base defines them.

Tf-KD is yuanli2333/Teacher-free-Knowledge-Distillation (arXiv:1909.11723); both networks come from
weiaicunzai/pytorch-cifar100. State-dict keys, parameter counts and multiply-adds are those of its modules. torchvision
and timm have networks of these names for 224 pixels, which are others. Weights start from torch's defaults, as there.
"""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from compress.errors import ModelError
from compress.models.layers import conv1x1, conv3x3, global_mean
from compress.models.network import Backbone
from compress.types import Answer, Features, FloatImages, Logits

NUM_GOOGLENET_FEATURES = 1024
GROWTH_RATE = 32
DENSE_BLOCKS = (6, 12, 24, 16)
MIN_DENSENET_SIDE = 8


class _InceptionPlan(NamedTuple):
    """Channels of the four branches; `reduced` ones are those before a 3x3 convolution."""

    num_inputs: int
    ones: int
    reduced_threes: int
    threes: int
    reduced_fives: int
    fives: int
    pooled: int


@final
class TfkdGoogLeNet(Backbone):
    """Nine inception blocks at 32, 16 and 8 pixels behind one 3x3 convolution; two 3x3 stand for each 5x5."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.prelayer = nn.Sequential(*_normalised(3, 192, kernel_size=3))
        self.a3 = _Inception(_InceptionPlan(192, 64, 96, 128, 16, 32, 32))
        self.b3 = _Inception(_InceptionPlan(256, 128, 128, 192, 32, 96, 64))
        self.a4 = _Inception(_InceptionPlan(480, 192, 96, 208, 16, 48, 64))
        self.b4 = _Inception(_InceptionPlan(512, 160, 112, 224, 24, 64, 64))
        self.c4 = _Inception(_InceptionPlan(512, 128, 128, 256, 24, 64, 64))
        self.d4 = _Inception(_InceptionPlan(512, 112, 144, 288, 32, 64, 64))
        self.e4 = _Inception(_InceptionPlan(528, 256, 160, 320, 32, 128, 128))
        self.a5 = _Inception(_InceptionPlan(832, 256, 160, 320, 32, 128, 128))
        self.b5 = _Inception(_InceptionPlan(832, 384, 192, 384, 48, 128, 128))
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.dropout = nn.Dropout(0.4)
        self.linear = nn.Linear(NUM_GOOGLENET_FEATURES, num_classes)

    def _features(self, images: FloatImages) -> Features:
        stem = self.prelayer(images)
        first = self.b3(self.a3(stem))
        second = self.e4(self.d4(self.c4(self.b4(self.a4(self.maxpool(first))))))
        third = self.b5(self.a5(self.maxpool(second)))
        return Features(self.dropout(global_mean(third)), (stem, first, second, third), third)

    def answer(self, images: FloatImages) -> Answer:
        features = self._features(images)
        return Answer(self.linear(features.pooled), features)

    def forward(self, images: FloatImages) -> Logits:
        return self.answer(images).logits


@final
class TfkdDenseNet121(Backbone):
    """Four dense blocks of growth rate 32 with halving transitions, behind one 3x3 convolution."""

    def __init__(self, *, num_classes: int, image_size: tuple[int, int]) -> None:
        """The image size is looked at only to refuse what cannot be halved three times.

        Raises:
            ModelError: the image is too small for that.
        """
        super().__init__()
        height, width = image_size
        if min(image_size) < MIN_DENSENET_SIDE:
            raise ModelError(
                f"this DenseNet halves the image three times and needs at least {MIN_DENSENET_SIDE}x"
                f"{MIN_DENSENET_SIDE} pixels, got {height}x{width}; set a larger image size or take another network"
            )
        num_channels = 2 * GROWTH_RATE
        self.conv1 = conv3x3(3, num_channels)
        self.features = nn.Sequential()
        for index, num_layers in enumerate(DENSE_BLOCKS):
            is_last = index == len(DENSE_BLOCKS) - 1
            # The last block's name has no `layer` in it, as the public checkpoints have it.
            name = f"dense_block{index}" if is_last else f"dense_block_layer_{index}"
            self.features.add_module(name, _dense_block(num_layers, num_channels))
            num_channels += num_layers * GROWTH_RATE
            if not is_last:
                self.features.add_module(f"transition_layer_{index}", _Transition(num_channels))
                num_channels //= 2
        self.features.add_module("bn", nn.BatchNorm2d(num_channels))
        self.features.add_module("relu", nn.ReLU())
        self.linear = nn.Linear(num_channels, num_classes)

    def _features(self, images: FloatImages) -> Features:
        current = self.conv1(images)
        maps = [current]
        for name, layer in self.features.named_children():
            current = layer(current)
            if name.startswith("dense_block"):
                maps.append(current)
        return Features(global_mean(current), tuple(maps), current)

    def answer(self, images: FloatImages) -> Answer:
        features = self._features(images)
        return Answer(self.linear(features.pooled), features)

    def forward(self, images: FloatImages) -> Logits:
        return self.answer(images).logits


class _Inception(nn.Module):
    """1x1, 1x1-3x3, 1x1-3x3-3x3 and pool-1x1 branches, their outputs side by side."""

    def __init__(self, plan: _InceptionPlan) -> None:
        super().__init__()
        self.b1 = nn.Sequential(*_normalised(plan.num_inputs, plan.ones, kernel_size=1))
        self.b2 = nn.Sequential(
            *_normalised(plan.num_inputs, plan.reduced_threes, kernel_size=1),
            *_normalised(plan.reduced_threes, plan.threes, kernel_size=3),
        )
        self.b3 = nn.Sequential(
            *_normalised(plan.num_inputs, plan.reduced_fives, kernel_size=1),
            # The public code passes the channels a second time, where batch normalisation takes its epsilon: a slip,
            # but part of the network that its checkpoints and its published accuracy belong to.
            *_normalised(plan.reduced_fives, plan.fives, kernel_size=3, epsilon=float(plan.fives)),
            *_normalised(plan.fives, plan.fives, kernel_size=3),
        )
        self.b4 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1), *_normalised(plan.num_inputs, plan.pooled, kernel_size=1)
        )

    def forward(self, maps: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        return torch.cat([self.b1(maps), self.b2(maps), self.b3(maps), self.b4(maps)], dim=1)


class _DenseLayer(nn.Module):
    """Normalised 1x1 and 3x3 convolutions whose output is appended to the input's channels."""

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        num_inner = 4 * GROWTH_RATE
        self.bottle_neck = nn.Sequential(
            nn.BatchNorm2d(num_inputs),
            nn.ReLU(),
            conv1x1(num_inputs, num_inner),
            nn.BatchNorm2d(num_inner),
            nn.ReLU(),
            conv3x3(num_inner, GROWTH_RATE),
        )

    def forward(self, maps: Float[Tensor, "B _ H W"]) -> Float[Tensor, "B _ H W"]:
        return torch.cat([maps, self.bottle_neck(maps)], dim=1)


class _Transition(nn.Module):
    """Half the channels, then half the size; unlike the paper's, without an activation behind the normalisation."""

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.down_sample = nn.Sequential(
            nn.BatchNorm2d(num_inputs), conv1x1(num_inputs, num_inputs // 2), nn.AvgPool2d(2)
        )

    def forward(self, maps: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        return self.down_sample(maps)


def _normalised(
    num_inputs: int, num_outputs: int, *, kernel_size: int, epsilon: float = 1e-5
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """A convolution with bias that keeps the size, its normalisation and activation."""
    convolution = nn.Conv2d(num_inputs, num_outputs, kernel_size=kernel_size, padding=kernel_size // 2)
    return convolution, nn.BatchNorm2d(num_outputs, eps=epsilon), nn.ReLU()


def _dense_block(num_layers: int, num_inputs: int) -> nn.Sequential:
    block = nn.Sequential()
    for index in range(num_layers):
        block.add_module(f"bottle_neck_layer_{index}", _DenseLayer(num_inputs + index * GROWTH_RATE))
    return block
