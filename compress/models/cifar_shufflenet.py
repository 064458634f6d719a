"""ShuffleNet V1 (arXiv:1707.01083) and V2 (arXiv:1807.11164) as the public CIFAR distillation code bases define them.

State-dict keys, parameter counts and multiply-adds are those of RepDistiller and mdistiller, with their departures
from the papers: a 1x1 stem of stride 1 and no max-pool. Deviation: the fixed 4-pixel pool is a mean over all pixels,
equal at 32x32. Weights start from torch's defaults, as there.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from compress.models.layers import conv1x1, depthwise3x3, global_mean, shuffle_channels
from compress.models.network import Backbone
from compress.types import Answer, Features, FloatImages, Logits

NUM_STEM_CHANNELS = 24
NUM_GROUPS = 3


@final
class CifarShuffleV1(Backbone):
    """Three stages of 4, 8 and 4 blocks with 240, 480 and 960 channels in three groups."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv1x1(3, NUM_STEM_CHANNELS)
        self.bn1 = nn.BatchNorm2d(NUM_STEM_CHANNELS)
        # The very first convolution has too few channels for groups.
        self.layer1 = _v1_stage(4, NUM_STEM_CHANNELS, 240, num_first_groups=1)
        self.layer2 = _v1_stage(8, 240, 480, num_first_groups=NUM_GROUPS)
        self.layer3 = _v1_stage(4, 480, 960, num_first_groups=NUM_GROUPS)
        self.linear = nn.Linear(960, num_classes)

    def _features(self, images: FloatImages) -> Features:
        stem = F.relu(self.bn1(self.conv1(images)))
        first = self.layer1(stem)
        second = self.layer2(first)
        third = self.layer3(second)
        return Features(global_mean(third), (stem, first, second, third), third)

    def answer(self, images: FloatImages) -> Answer:
        features = self._features(images)
        return Answer(self.linear(features.pooled), features)

    def forward(self, images: FloatImages) -> Logits:
        return self.answer(images).logits


@final
class CifarShuffleV2(Backbone):
    """Width 1: three stages of one halving block and 3, 7 and 3 split blocks, 116, 232 and 464 channels."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv1x1(3, NUM_STEM_CHANNELS)
        self.bn1 = nn.BatchNorm2d(NUM_STEM_CHANNELS)
        self.layer1 = _v2_stage(3, NUM_STEM_CHANNELS, 116)
        self.layer2 = _v2_stage(7, 116, 232)
        self.layer3 = _v2_stage(3, 232, 464)
        self.conv2 = conv1x1(464, 1024)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, num_classes)

    def _features(self, images: FloatImages) -> Features:
        stem = F.relu(self.bn1(self.conv1(images)))
        first = self.layer1(stem)
        second = self.layer2(first)
        third = self.layer3(second)
        last = F.relu(self.bn2(self.conv2(third)))
        return Features(global_mean(last), (stem, first, second, third), last)

    def answer(self, images: FloatImages) -> Answer:
        features = self._features(images)
        return Answer(self.linear(features.pooled), features)

    def forward(self, images: FloatImages) -> Logits:
        return self.answer(images).logits


class _V1Block(nn.Module):
    """Grouped bottleneck; a halving block appends the pooled input to its channels, any other adds the input."""

    def __init__(self, num_inputs: int, num_outputs: int, *, stride: int, num_first_groups: int) -> None:
        """`num_outputs` are those of the branch alone."""
        super().__init__()
        num_inner = num_outputs // 4
        self.num_first_groups = num_first_groups
        self.is_halving = stride == 2
        self.conv1 = conv1x1(num_inputs, num_inner, groups=num_first_groups)
        self.bn1 = nn.BatchNorm2d(num_inner)
        self.conv2 = depthwise3x3(num_inner, stride=stride)
        self.bn2 = nn.BatchNorm2d(num_inner)
        self.conv3 = conv1x1(num_inner, num_outputs, groups=NUM_GROUPS)
        self.bn3 = nn.BatchNorm2d(num_outputs)

    def forward(self, maps: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        branch = F.relu(self.bn1(self.conv1(maps)))
        branch = shuffle_channels(branch, self.num_first_groups)
        branch = F.relu(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        if self.is_halving:
            return F.relu(torch.cat([branch, F.avg_pool2d(maps, 3, stride=2, padding=1)], dim=1))
        return F.relu(branch + maps)


class _V2HalvingBlock(nn.Module):
    """Two strided branches side by side, their channels interleaved."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        num_branch = num_outputs // 2
        self.conv1 = depthwise3x3(num_inputs, stride=2)
        self.bn1 = nn.BatchNorm2d(num_inputs)
        self.conv2 = conv1x1(num_inputs, num_branch)
        self.bn2 = nn.BatchNorm2d(num_branch)
        self.conv3 = conv1x1(num_inputs, num_branch)
        self.bn3 = nn.BatchNorm2d(num_branch)
        self.conv4 = depthwise3x3(num_branch, stride=2)
        self.bn4 = nn.BatchNorm2d(num_branch)
        self.conv5 = conv1x1(num_branch, num_branch)
        self.bn5 = nn.BatchNorm2d(num_branch)

    def forward(self, maps: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        left = self.bn1(self.conv1(maps))
        left = F.relu(self.bn2(self.conv2(left)))
        right = F.relu(self.bn3(self.conv3(maps)))
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)))
        return shuffle_channels(torch.cat([left, right], dim=1), 2)


class _V2SplitBlock(nn.Module):
    """One half of the channels passes untouched, the other goes through three convolutions."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        num_branch = num_channels // 2
        self.conv1 = conv1x1(num_branch, num_branch)
        self.bn1 = nn.BatchNorm2d(num_branch)
        self.conv2 = depthwise3x3(num_branch)
        self.bn2 = nn.BatchNorm2d(num_branch)
        self.conv3 = conv1x1(num_branch, num_branch)
        self.bn3 = nn.BatchNorm2d(num_branch)

    def forward(self, maps: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
        untouched, branch = maps.chunk(2, dim=1)
        branch = F.relu(self.bn1(self.conv1(branch)))
        branch = self.bn2(self.conv2(branch))
        branch = F.relu(self.bn3(self.conv3(branch)))
        return shuffle_channels(torch.cat([untouched, branch], dim=1), 2)


def _v1_stage(num_blocks: int, num_inputs: int, num_outputs: int, *, num_first_groups: int) -> nn.Sequential:
    first = _V1Block(num_inputs, num_outputs - num_inputs, stride=2, num_first_groups=num_first_groups)
    others = (_V1Block(num_outputs, num_outputs, stride=1, num_first_groups=NUM_GROUPS) for _ in range(num_blocks - 1))
    return nn.Sequential(first, *others)


def _v2_stage(num_split_blocks: int, num_inputs: int, num_outputs: int) -> nn.Sequential:
    first = _V2HalvingBlock(num_inputs, num_outputs)
    return nn.Sequential(first, *(_V2SplitBlock(num_outputs) for _ in range(num_split_blocks)))
