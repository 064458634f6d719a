"""MobileNetV2 (arXiv:1801.04381) and ShuffleNetV2 (arXiv:1807.11164) as the Tf-KD code base defines them.

Tf-KD is yuanli2333/Teacher-free-Knowledge-Distillation (arXiv:1909.11723), whose small networks come from
weiaicunzai/pytorch-cifar100. State-dict keys, parameter counts and multiply-adds are those of its modules. Names
collide: its MobileNetV2 has three times the parameters and ten times the multiply-adds of RepDistiller's
(`cifar_mobilenet`), its ShuffleNetV2 differs from RepDistiller's (`cifar_shufflenet`) in a 3x3 stem, in convolutions
with bias and in the width of one convolution of each halving block. Weights start from torch's defaults, as there.
"""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from compress.models.layers import global_mean, shuffle_channels
from compress.models.network import Backbone
from compress.types import Answer, Features, FloatImages, Logits

NUM_MOBILE_FEATURES = 1280
NUM_SHUFFLE_FEATURES = 1024


class _StagePlan(NamedTuple):
    num_inputs: int
    num_outputs: int
    num_blocks: int
    stride: int


MOBILE_STAGES = (
    _StagePlan(16, 24, num_blocks=2, stride=2),
    _StagePlan(24, 32, num_blocks=3, stride=2),
    _StagePlan(32, 64, num_blocks=4, stride=2),
    _StagePlan(64, 96, num_blocks=3, stride=1),
    _StagePlan(96, 160, num_blocks=3, stride=1),
)


@final
class TfkdMobileNetV2(Backbone):
    """Full width, a 1x1 stem that pads (34 pixels from 32), the classes as a 1x1 convolution `conv2`."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.pre = nn.Sequential(nn.Conv2d(3, 32, kernel_size=1, padding=1), nn.BatchNorm2d(32), nn.ReLU6())
        self.stage1 = _InvertedResidual(32, 16, stride=1, expansion=1)
        self.stage2, self.stage3, self.stage4, self.stage5, self.stage6 = map(_mobile_stage, MOBILE_STAGES)
        self.stage7 = _InvertedResidual(160, 320, stride=1, expansion=6)
        self.conv1 = nn.Sequential(
            nn.Conv2d(320, NUM_MOBILE_FEATURES, kernel_size=1), nn.BatchNorm2d(NUM_MOBILE_FEATURES), nn.ReLU6()
        )
        self.conv2 = nn.Conv2d(NUM_MOBILE_FEATURES, num_classes, kernel_size=1)

    def _features(self, images: FloatImages) -> Features:
        stem = self.stage1(self.pre(images))
        first = self.stage2(stem)
        second = self.stage3(first)
        third = self.stage5(self.stage4(second))
        fourth = self.stage7(self.stage6(third))
        last = self.conv1(fourth)
        return Features(global_mean(last), (stem, first, second, third, fourth), last)

    def answer(self, images: FloatImages) -> Answer:
        features = self._features(images)
        return Answer(self.conv2(features.pooled[:, :, None, None]).flatten(1), features)

    def forward(self, images: FloatImages) -> Logits:
        return self.answer(images).logits


@final
class TfkdShuffleNetV2(Backbone):
    """Width 1: three stages of one halving block and 3, 7 and 3 split blocks; no activation behind the stem."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.pre = nn.Sequential(nn.Conv2d(3, 24, kernel_size=3, padding=1), nn.BatchNorm2d(24))
        self.stage2 = _shuffle_stage(24, 116, num_split_blocks=3)
        self.stage3 = _shuffle_stage(116, 232, num_split_blocks=7)
        self.stage4 = _shuffle_stage(232, 464, num_split_blocks=3)
        self.conv5 = nn.Sequential(*_normalised1x1(464, NUM_SHUFFLE_FEATURES), nn.ReLU())
        self.fc = nn.Linear(NUM_SHUFFLE_FEATURES, num_classes)

    def _features(self, images: FloatImages) -> Features:
        stem = self.pre(images)
        first = self.stage2(stem)
        second = self.stage3(first)
        third = self.stage4(second)
        last = self.conv5(third)
        return Features(global_mean(last), (stem, first, second, third), last)

    def answer(self, images: FloatImages) -> Answer:
        features = self._features(images)
        return Answer(self.fc(features.pooled), features)

    def forward(self, images: FloatImages) -> Logits:
        return self.answer(images).logits


class _InvertedResidual(nn.Module):
    """Expand, filter each channel, project linearly; added to the input where the shape stays."""

    def __init__(self, num_inputs: int, num_outputs: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        num_inner = expansion * num_inputs
        self.is_residual = stride == 1 and num_inputs == num_outputs
        self.residual = nn.Sequential(
            *_normalised1x1(num_inputs, num_inner),
            nn.ReLU6(),
            *_normalised_depthwise(num_inner, stride=stride),
            nn.ReLU6(),
            *_normalised1x1(num_inner, num_outputs),
        )

    def forward(self, maps: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        return maps + self.residual(maps) if self.is_residual else self.residual(maps)


class _HalvingBlock(nn.Module):
    """Two strided branches side by side, their channels interleaved; the first convolution keeps the width."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        num_branch = num_outputs // 2
        self.residual = nn.Sequential(
            *_normalised1x1(num_inputs, num_inputs),
            nn.ReLU(),
            *_normalised_depthwise(num_inputs, stride=2),
            *_normalised1x1(num_inputs, num_branch),
            nn.ReLU(),
        )
        self.shortcut = nn.Sequential(
            *_normalised_depthwise(num_inputs, stride=2), *_normalised1x1(num_inputs, num_branch), nn.ReLU()
        )

    def forward(self, maps: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        return shuffle_channels(torch.cat([self.shortcut(maps), self.residual(maps)], dim=1), 2)


class _SplitBlock(nn.Module):
    """One half of the channels passes untouched, the other goes through three convolutions."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        num_branch = num_channels // 2
        self.residual = nn.Sequential(
            *_normalised1x1(num_branch, num_branch),
            nn.ReLU(),
            *_normalised_depthwise(num_branch, stride=1),
            *_normalised1x1(num_branch, num_branch),
            nn.ReLU(),
        )

    def forward(self, maps: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
        untouched, branch = maps.chunk(2, dim=1)
        return shuffle_channels(torch.cat([untouched, self.residual(branch)], dim=1), 2)


def _normalised1x1(num_inputs: int, num_outputs: int) -> tuple[nn.Module, nn.Module]:
    """A 1x1 convolution with bias, as everywhere in this code base, and its normalisation."""
    return nn.Conv2d(num_inputs, num_outputs, kernel_size=1), nn.BatchNorm2d(num_outputs)


def _normalised_depthwise(num_channels: int, *, stride: int) -> tuple[nn.Module, nn.Module]:
    """One 3x3 filter per channel, with bias, and its normalisation."""
    convolution = nn.Conv2d(num_channels, num_channels, kernel_size=3, stride=stride, padding=1, groups=num_channels)
    return convolution, nn.BatchNorm2d(num_channels)


def _mobile_stage(plan: _StagePlan) -> nn.Sequential:
    first = _InvertedResidual(plan.num_inputs, plan.num_outputs, stride=plan.stride, expansion=6)
    others = (
        _InvertedResidual(plan.num_outputs, plan.num_outputs, stride=1, expansion=6) for _ in range(plan.num_blocks - 1)
    )
    return nn.Sequential(first, *others)


def _shuffle_stage(num_inputs: int, num_outputs: int, *, num_split_blocks: int) -> nn.Sequential:
    first = _HalvingBlock(num_inputs, num_outputs)
    return nn.Sequential(first, *(_SplitBlock(num_outputs) for _ in range(num_split_blocks)))
