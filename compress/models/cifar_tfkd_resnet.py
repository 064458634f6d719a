"""ResNet-18 (arXiv:1512.03385) and ResNeXt-29 8x64d (arXiv:1611.05431) as the Tf-KD code base defines them.

Tf-KD is yuanli2333/Teacher-free-Knowledge-Distillation (arXiv:1909.11723). State-dict keys, parameter counts and
multiply-adds are those of its modules; its ResNet50 is the `ResNet50` of `cifar_resnet`, key for key. Deviation: the
fixed 4-pixel (ResNet) and 8-pixel (ResNeXt) pools are means over all pixels, equal at 32x32.
"""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from compress.models.layers import conv1x1, conv3x3, global_mean, init_convolutions_
from compress.models.network import Backbone
from compress.types import Answer, Features, FloatImages, Logits

CARDINALITY = 8
RESNEXT_EXPANSION = 4
RESNEXT_WIDTHS = (64, 256, 512, 1024)
NUM_RESNEXT_BLOCKS = 3


@final
class TfkdResNet18(Backbone):
    """Four stages of two basic blocks behind a 3x3 stem of stride 1; the last layer is called `linear`.

    Not a member of RepDistiller's family of 6n+2 layers, and four times as wide. Weights start from torch's defaults.
    """

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _basic_stage(64, 64, stride=1)
        self.layer2 = _basic_stage(64, 128, stride=2)
        self.layer3 = _basic_stage(128, 256, stride=2)
        self.layer4 = _basic_stage(256, 512, stride=2)
        self.linear = nn.Linear(512, num_classes)

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


@final
class TfkdResNeXt29(Backbone):
    """Three stages of three grouped bottlenecks, 8 groups of 64 channels in the first stage, strides 1, 2, 2."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.conv_1_3x3 = conv3x3(3, RESNEXT_WIDTHS[0])
        self.bn_1 = nn.BatchNorm2d(RESNEXT_WIDTHS[0])
        self.stage_1 = _resnext_stage("stage_1", RESNEXT_WIDTHS[0], RESNEXT_WIDTHS[1], stride=1)
        self.stage_2 = _resnext_stage("stage_2", RESNEXT_WIDTHS[1], RESNEXT_WIDTHS[2], stride=2)
        self.stage_3 = _resnext_stage("stage_3", RESNEXT_WIDTHS[2], RESNEXT_WIDTHS[3], stride=2)
        self.classifier = nn.Linear(RESNEXT_WIDTHS[3], num_classes)
        init_convolutions_(self)
        nn.init.kaiming_normal_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def _features(self, images: FloatImages) -> Features:
        stem = F.relu(self.bn_1(self.conv_1_3x3(images)))
        first = self.stage_1(stem)
        second = self.stage_2(first)
        third = self.stage_3(second)
        return Features(global_mean(third), (stem, first, second, third), third)

    def answer(self, images: FloatImages) -> Answer:
        features = self._features(images)
        return Answer(self.classifier(features.pooled), features)

    def forward(self, images: FloatImages) -> Logits:
        return self.answer(images).logits


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions; `shortcut`, which RepDistiller's networks call `downsample`, where the shape changes."""

    def __init__(self, num_inputs: int, num_outputs: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(num_inputs, num_outputs, stride=stride)
        self.bn1 = nn.BatchNorm2d(num_outputs)
        self.conv2 = conv3x3(num_outputs, num_outputs)
        self.bn2 = nn.BatchNorm2d(num_outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or num_inputs != num_outputs:
            self.shortcut.append(conv1x1(num_inputs, num_outputs, stride=stride))
            self.shortcut.append(nn.BatchNorm2d(num_outputs))

    def forward(self, maps: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        branch = F.relu(self.bn1(self.conv1(maps)))
        branch = self.bn2(self.conv2(branch))
        return F.relu(branch + self.shortcut(maps))


class _GroupedBottleneck(nn.Module):
    """1x1, grouped 3x3 (strided) and 1x1 convolutions: form C of the paper."""

    def __init__(self, num_inputs: int, num_outputs: int, *, stride: int) -> None:
        super().__init__()
        num_inner = CARDINALITY * num_outputs // RESNEXT_EXPANSION
        self.conv_reduce = conv1x1(num_inputs, num_inner)
        self.bn_reduce = nn.BatchNorm2d(num_inner)
        self.conv_conv = nn.Conv2d(
            num_inner, num_inner, kernel_size=3, stride=stride, padding=1, groups=CARDINALITY, bias=False
        )
        self.bn = nn.BatchNorm2d(num_inner)
        self.conv_expand = conv1x1(num_inner, num_outputs)
        self.bn_expand = nn.BatchNorm2d(num_outputs)
        self.shortcut = nn.Sequential()
        if num_inputs != num_outputs:
            self.shortcut.add_module("shortcut_conv", conv1x1(num_inputs, num_outputs, stride=stride))
            self.shortcut.add_module("shortcut_bn", nn.BatchNorm2d(num_outputs))

    def forward(self, maps: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        branch = F.relu(self.bn_reduce(self.conv_reduce(maps)))
        branch = F.relu(self.bn(self.conv_conv(branch)))
        branch = self.bn_expand(self.conv_expand(branch))
        return F.relu(branch + self.shortcut(maps))


def _basic_stage(num_inputs: int, num_outputs: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _BasicBlock(num_inputs, num_outputs, stride=stride), _BasicBlock(num_outputs, num_outputs, stride=1)
    )


def _resnext_stage(name: str, num_inputs: int, num_outputs: int, *, stride: int) -> nn.Sequential:
    """The blocks repeat the name of their stage, as the public checkpoints have it."""
    stage = nn.Sequential()
    for index in range(NUM_RESNEXT_BLOCKS):
        block = _GroupedBottleneck(num_inputs if index == 0 else num_outputs, num_outputs, stride=stride)
        stage.add_module(f"{name}_bottleneck_{index}", block)
        stride = 1
    return stage
