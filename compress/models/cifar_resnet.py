"""Residual networks for small images (arXiv:1512.03385) as the public CIFAR distillation code bases define them.

State-dict keys, parameter counts and multiply-adds are those of RepDistiller (HobbitLong/RepDistiller) and
mdistiller. Deviation: the fixed 8-pixel (resnetN) pool is a mean over all pixels, equal at 32x32, so that other
image sizes work too.
"""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from compress.models.layers import conv1x1, conv3x3, global_mean, init_convolutions_
from compress.models.network import Backbone
from compress.types import Answer, Features, FloatImages, Logits

NARROW = (16, 16, 32, 64)
WIDE = (32, 64, 128, 256)


@final
class CifarResNet(Backbone):
    """resnet8 … resnet110 and the x4 models: three stages of basic blocks, strides 1, 2, 2."""

    def __init__(self, depth: int, widths: tuple[int, int, int, int], *, num_classes: int) -> None:
        """`depth` is 6n+2 for n blocks a stage; `widths` are the channels of the stem and of the three stages."""
        super().__init__()
        num_blocks, remainder = divmod(depth - 2, 6)
        if remainder or num_blocks < 1:
            raise ValueError(f"depth must be 6n+2 with n >= 1, got {depth}")
        self.conv1 = conv3x3(3, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _basic_stage(num_blocks, widths[0], widths[1], stride=1)
        self.layer2 = _basic_stage(num_blocks, widths[1], widths[2], stride=2)
        self.layer3 = _basic_stage(num_blocks, widths[2], widths[3], stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        init_convolutions_(self)

    def _features(self, images: FloatImages) -> Features:
        stem = F.relu(self.bn1(self.conv1(images)))
        first = self.layer1(stem)
        second = self.layer2(first)
        third = self.layer3(second)
        return Features(global_mean(third), (stem, first, second, third), third)

    def answer(self, images: FloatImages) -> Answer:
        features = self._features(images)
        return Answer(self.fc(features.pooled), features)

    def forward(self, images: FloatImages) -> Logits:
        return self.answer(images).logits


@final
class CifarResNet50(Backbone):
    """ResNet-50 with a 3x3 stem of stride 1 and no max-pool; the last layer is called `linear`."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _bottleneck_stage(3, 64, 64, stride=1)
        self.layer2 = _bottleneck_stage(4, 256, 128, stride=2)
        self.layer3 = _bottleneck_stage(6, 512, 256, stride=2)
        self.layer4 = _bottleneck_stage(3, 1024, 512, stride=2)
        self.linear = nn.Linear(2048, num_classes)
        init_convolutions_(self)

    def _features(self, images: FloatImages) -> Features:
        stem = F.relu(self.bn1(self.conv1(images)))
        first = self.layer1(stem)
        second = self.layer2(first)
        third = self.layer3(second)
        fourth = self.layer4(third)
        return Features(global_mean(fourth), (stem, first, second, third, fourth), fourth)

    def answer(self, images: FloatImages) -> Answer:
        features = self._features(images)
        return Answer(self.linear(features.pooled), features)

    def forward(self, images: FloatImages) -> Logits:
        return self.answer(images).logits


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions; a projection, never padding, wherever the shape changes."""

    def __init__(self, num_inputs: int, num_outputs: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(num_inputs, num_outputs, stride=stride)
        self.bn1 = nn.BatchNorm2d(num_outputs)
        self.conv2 = conv3x3(num_outputs, num_outputs)
        self.bn2 = nn.BatchNorm2d(num_outputs)
        self.downsample = _shortcut(num_inputs, num_outputs, stride=stride)

    def forward(self, maps: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        branch = F.relu(self.bn1(self.conv1(maps)))
        branch = self.bn2(self.conv2(branch))
        return F.relu(branch + self.downsample(maps))


class _Bottleneck(nn.Module):
    """1x1, 3x3 (strided), 1x1 convolutions; the output has four times the channels of the 3x3."""

    def __init__(self, num_inputs: int, num_channels: int, *, stride: int) -> None:
        super().__init__()
        num_outputs = 4 * num_channels
        self.conv1 = conv1x1(num_inputs, num_channels)
        self.bn1 = nn.BatchNorm2d(num_channels)
        self.conv2 = conv3x3(num_channels, num_channels, stride=stride)
        self.bn2 = nn.BatchNorm2d(num_channels)
        self.conv3 = conv1x1(num_channels, num_outputs)
        self.bn3 = nn.BatchNorm2d(num_outputs)
        self.shortcut = _shortcut(num_inputs, num_outputs, stride=stride)

    def forward(self, maps: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        branch = F.relu(self.bn1(self.conv1(maps)))
        branch = F.relu(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        return F.relu(branch + self.shortcut(maps))


def _shortcut(num_inputs: int, num_outputs: int, *, stride: int) -> nn.Module:
    if stride == 1 and num_inputs == num_outputs:
        return nn.Identity()
    return nn.Sequential(conv1x1(num_inputs, num_outputs, stride=stride), nn.BatchNorm2d(num_outputs))


def _basic_stage(num_blocks: int, num_inputs: int, num_outputs: int, *, stride: int) -> nn.Sequential:
    first = _BasicBlock(num_inputs, num_outputs, stride=stride)
    return nn.Sequential(first, *(_BasicBlock(num_outputs, num_outputs, stride=1) for _ in range(num_blocks - 1)))


def _bottleneck_stage(num_blocks: int, num_inputs: int, num_channels: int, *, stride: int) -> nn.Sequential:
    first = _Bottleneck(num_inputs, num_channels, stride=stride)
    return nn.Sequential(first, *(_Bottleneck(4 * num_channels, num_channels, stride=1) for _ in range(num_blocks - 1)))
