"""ViTKD, feature distillation for vision transformers (arXiv 2209.02432; yzd-v/cls_KD, commit 1e5d48f3).

On patch tokens, the class token left out; squared errors are summed over tokens and channels and divided by B.
Mimicking: the outputs of blocks 1 and 2, each through a linear layer of its own to the teacher's width,
    mimic_weight * |student - teacher|^2 / B.
Generation: the student's last tokens behind the final normalisation go through a linear layer; of the N tokens of each
image int(N * (1 - masked_share)) at random are kept, the others become a learned token; two 3x3 convolutions with a
ReLU between have to produce the teacher's tokens,
    generation_weight / masked_share * |generated - teacher|^2 / B on the masked tokens.
soft = the sum of both, hard = cross-entropy. Where the widths agree there are no linear layers. Computed in float32.
The token grid may be any rectangle; the authors' is square.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from compress.errors import ModelError
from compress.methods.base import FeatureLoss, FeatureMethod, FeatureShapes, Pair, Samples
from compress.settings import NonNegativeFloat
from compress.types import Answer, Features, Scalar

NUM_SHALLOW = 2
"""Blocks that are mimicked, from the first on."""


class ViTKD(FeatureMethod):
    """Mimic a transformer's first blocks and generate its last tokens from some of the student's."""

    name: Literal["vitkd"] = "vitkd"
    mimic_weight: NonNegativeFloat = 3e-5
    """Weight of the squared error after the first two blocks (alpha)."""
    generation_weight: NonNegativeFloat = 3e-6
    """Weight of the squared error of the generated tokens (beta)."""
    masked_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Share of tokens that have to be generated (lambda)."""

    def build(self, pair: Pair) -> ViTKDLoss:
        student_width, student_grid = _tokens_of(pair.student, role="student")
        teacher_width, teacher_grid = _tokens_of(pair.teacher, role="teacher")
        if student_grid != teacher_grid:
            raise ModelError(
                f"vitkd compares token by token, but the student has {_text(student_grid)} tokens and the teacher "
                f"{_text(teacher_grid)}; choose networks of one patch size"
            )
        return ViTKDLoss(self, student_width, teacher_width)


class ViTKDLoss(FeatureLoss):
    """ViTKD for transformers of these widths."""

    def __init__(self, method: ViTKD, student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.method = method
        self.shallow_aligns = nn.ModuleList(_align(student_width, teacher_width) for _ in range(NUM_SHALLOW))
        self.deep_align = _align(student_width, teacher_width)
        self.mask_token = nn.Parameter(torch.zeros(teacher_width))
        self.generation = nn.Sequential(
            nn.Conv2d(teacher_width, teacher_width, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(teacher_width, teacher_width, kernel_size=3, padding=1),
        )

    def soft(self, student: Answer, teacher: Answer, samples: Samples) -> Scalar:
        batch, _, height, width = student.features.last_map.shape
        noise = torch.rand(batch, height * width, device=student.features.last_map.device)
        num_kept = int(height * width * (1 - self.method.masked_share))
        is_masked = all_but_smallest(noise, num_kept).unflatten(1, (height, width))
        with torch.autocast(noise.device.type, enabled=False):
            mimicking = self.mimicking(student.features, teacher.features)
            return mimicking + self.generating(student.features, teacher.features, is_masked)

    def mimicking(self, student: Features, teacher: Features) -> Scalar:
        """The weighted error after the shallow blocks."""
        loss = torch.zeros_like(self.mask_token[0])
        for align, own, target in zip(self.shallow_aligns, student.maps, teacher.maps, strict=False):
            loss = loss + (align(self._exact(own)) - self._exact(target.detach())).square().sum()
        return self.method.mimic_weight * loss / len(student.last_map)

    def generating(self, student: Features, teacher: Features, is_masked: Bool[Tensor, "B H W"]) -> Scalar:
        """The weighted error of the generated tokens."""
        mask = is_masked.unsqueeze(1)
        kept = torch.where(mask, self.mask_token.view(1, -1, 1, 1), self.deep_align(self._exact(student.last_map)))
        error = torch.where(mask, self.generation(kept) - self._exact(teacher.last_map.detach()), 0.0)
        weight = self.method.generation_weight / self.method.masked_share
        return weight * error.square().sum() / len(is_masked)

    def _exact(self, maps: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
        """In the precision of the loss's own layers."""
        return maps.to(self.mask_token.dtype)


def all_but_smallest(noise: Float[Tensor, "B N"], num_smallest: int) -> Bool[Tensor, "B N"]:
    """True except at each row's `num_smallest` smallest values."""
    return noise.argsort(dim=1).argsort(dim=1) >= num_smallest


def _align(student_width: int, teacher_width: int) -> nn.Module:
    """A linear layer for each token, as a convolution; nothing where the widths agree."""
    return nn.Identity() if student_width == teacher_width else nn.Conv2d(student_width, teacher_width, kernel_size=1)


def _tokens_of(shapes: FeatureShapes, *, role: str) -> tuple[int, tuple[int, int]]:
    """Width and grid of a transformer's tokens."""
    channels, height, width = shapes.last_map
    if len(shapes.maps) <= NUM_SHALLOW or any(each != shapes.last_map for each in shapes.maps):
        raise ModelError(
            f"vitkd needs a plain vision transformer of more than {NUM_SHALLOW} blocks, but the {role}'s maps are "
            f"{', '.join(_text(each) for each in shapes.maps)}; choose networks such as deit_tiny_patch16_224"
        )
    return channels, (height, width)


def _text(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
