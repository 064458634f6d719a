"""MobileNetV2 (arXiv:1801.04381) at half width, as the public CIFAR distillation code bases define it.

State-dict keys, parameter counts and multiply-adds are those of RepDistiller (`mobile_half`) and mdistiller, with
their departures from the paper: ReLU instead of ReLU6, an expansion convolution in the first block too, stride 1 in
the second stage, no dropout. Deviation: the fixed 2-pixel pool is a mean over all pixels, equal at 32x32.
"""

from __future__ import annotations

from typing import NamedTuple, final

from jaxtyping import Float
from torch import Tensor, nn

from compress.models.layers import conv1x1, conv3x3, depthwise3x3, global_mean, init_convolutions_
from compress.models.network import Backbone
from compress.types import Answer, Features, FloatImages, Logits

NUM_STEM_CHANNELS = 16
NUM_FEATURES = 1280


class _StagePlan(NamedTuple):
    expansion: int
    num_channels: int
    num_blocks: int
    stride: int


STAGES = (
    _StagePlan(expansion=1, num_channels=8, num_blocks=1, stride=1),
    _StagePlan(expansion=6, num_channels=12, num_blocks=2, stride=1),
    _StagePlan(expansion=6, num_channels=16, num_blocks=3, stride=2),
    _StagePlan(expansion=6, num_channels=32, num_blocks=4, stride=2),
    _StagePlan(expansion=6, num_channels=48, num_blocks=3, stride=1),
    _StagePlan(expansion=6, num_channels=80, num_blocks=3, stride=2),
    _StagePlan(expansion=6, num_channels=160, num_blocks=1, stride=1),
)
# The stages whose maps are features, after those of the public code: the last one of each resolution and the end.
FEATURE_STAGES = (1, 2, 4, 6)


@final
class CifarMobileNetV2(Backbone):
    """Stem of stride 2, seven stages of inverted residuals, a 1x1 convolution to 1280 channels."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            conv3x3(3, NUM_STEM_CHANNELS, stride=2), nn.BatchNorm2d(NUM_STEM_CHANNELS), nn.ReLU()
        )
        self.blocks = nn.ModuleList()
        num_inputs = NUM_STEM_CHANNELS
        for plan in STAGES:
            self.blocks.append(_stage(plan, num_inputs))
            num_inputs = plan.num_channels
        self.conv2 = nn.Sequential(conv1x1(num_inputs, NUM_FEATURES), nn.BatchNorm2d(NUM_FEATURES), nn.ReLU())
        linear = nn.Linear(NUM_FEATURES, num_classes)
        self.classifier = nn.Sequential(linear)
        init_convolutions_(self)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)

    def _features(self, images: FloatImages) -> Features:
        current = self.conv1(images)
        maps = [current]
        for index, stage in enumerate(self.blocks):
            current = stage(current)
            if index in FEATURE_STAGES:
                maps.append(current)
        last = self.conv2(current)
        return Features(global_mean(last), tuple(maps), last)

    def answer(self, images: FloatImages) -> Answer:
        features = self._features(images)
        return Answer(self.classifier(features.pooled), features)

    def forward(self, images: FloatImages) -> Logits:
        return self.answer(images).logits


class _InvertedResidual(nn.Module):
    """Expand, filter each channel, project linearly; added to the input where the shape stays."""

    def __init__(self, num_inputs: int, num_outputs: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        num_inner = expansion * num_inputs
        self.is_residual = stride == 1 and num_inputs == num_outputs
        self.conv = nn.Sequential(
            conv1x1(num_inputs, num_inner),
            nn.BatchNorm2d(num_inner),
            nn.ReLU(),
            depthwise3x3(num_inner, stride=stride),
            nn.BatchNorm2d(num_inner),
            nn.ReLU(),
            conv1x1(num_inner, num_outputs),
            nn.BatchNorm2d(num_outputs),
        )

    def forward(self, maps: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        return maps + self.conv(maps) if self.is_residual else self.conv(maps)


def _stage(plan: _StagePlan, num_inputs: int) -> nn.Sequential:
    first = _InvertedResidual(num_inputs, plan.num_channels, stride=plan.stride, expansion=plan.expansion)
    others = (
        _InvertedResidual(plan.num_channels, plan.num_channels, stride=1, expansion=plan.expansion)
        for _ in range(plan.num_blocks - 1)
    )
    return nn.Sequential(first, *others)
