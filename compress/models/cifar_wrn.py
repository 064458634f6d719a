"""Wide residual networks (arXiv:1605.07146) as the public CIFAR distillation code bases define them.

State-dict keys, parameter counts and multiply-adds are those of RepDistiller and mdistiller. Deviation: the fixed
8-pixel pool is a mean over all pixels, equal at 32x32.
"""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from compress.models.layers import conv1x1, conv3x3, global_mean, init_convolutions_
from compress.models.network import Backbone
from compress.types import Answer, Features, FloatImages, Logits


@final
class CifarWideResNet(Backbone):
    """wrn_<depth>_<width factor>: pre-activation blocks in three stages, strides 1, 2, 2; no dropout."""

    def __init__(self, depth: int, width_factor: int, *, num_classes: int) -> None:
        """`depth` is 6n+4 for n blocks a stage; the stages have 16, 32 and 64 times `width_factor` channels."""
        super().__init__()
        num_blocks, remainder = divmod(depth - 4, 6)
        if remainder or num_blocks < 1:
            raise ValueError(f"depth must be 6n+4 with n >= 1, got {depth}")
        widths = (16 * width_factor, 32 * width_factor, 64 * width_factor)
        self.conv1 = conv3x3(3, 16)
        self.block1 = _Stage(num_blocks, 16, widths[0], stride=1)
        self.block2 = _Stage(num_blocks, widths[0], widths[1], stride=2)
        self.block3 = _Stage(num_blocks, widths[1], widths[2], stride=2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], num_classes)
        init_convolutions_(self)
        nn.init.zeros_(self.fc.bias)

    def _features(self, images: FloatImages) -> Features:
        stem = self.conv1(images)
        first = self.block1(stem)
        second = self.block2(first)
        third = self.block3(second)
        last = F.relu(self.bn1(third))
        return Features(global_mean(last), (stem, first, second, third), last)

    def answer(self, images: FloatImages) -> Answer:
        features = self._features(images)
        return Answer(self.fc(features.pooled), features)

    def forward(self, images: FloatImages) -> Logits:
        return self.answer(images).logits


class _Stage(nn.Module):
    """A sequence under the name `layer`, as the public checkpoints have it."""

    def __init__(self, num_blocks: int, num_inputs: int, num_outputs: int, *, stride: int) -> None:
        super().__init__()
        first = _Block(num_inputs, num_outputs, stride=stride)
        self.layer = nn.Sequential(first, *(_Block(num_outputs, num_outputs, stride=1) for _ in range(num_blocks - 1)))

    def forward(self, maps: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        return self.layer(maps)


class _Block(nn.Module):
    """Two 3x3 convolutions, each after its own normalisation and activation."""

    def __init__(self, num_inputs: int, num_outputs: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(num_inputs)
        self.conv1 = conv3x3(num_inputs, num_outputs, stride=stride)
        self.bn2 = nn.BatchNorm2d(num_outputs)
        self.conv2 = conv3x3(num_outputs, num_outputs)
        # A bare projection of the activated maps where the width changes; elsewhere the raw input goes past the block.
        self.convShortcut = conv1x1(num_inputs, num_outputs, stride=stride) if num_inputs != num_outputs else None

    def forward(self, maps: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        activated = F.relu(self.bn1(maps))
        branch = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return branch + (maps if self.convShortcut is None else self.convShortcut(activated))
