"""Mixup and CutMix: each training image is blended with another one of its batch, or gets a box of it.

Hongyi Zhang et al., mixup: Beyond Empirical Risk Minimization (arXiv 1710.09412); Sangdoo Yun et al., CutMix:
Regularization Strategy to Train Strong Classifiers with Localizable Features (arXiv 1905.04899). One share for the
whole batch and the batch in reverse order as partners, as timm's Mixup has it; here the batch may be odd: the image in
the middle is its own partner and stays as it is.

A mixed image is a new image in every epoch. Stored teacher logits belong to views and do not fit it: a teacher has to
answer for the mixed images themselves, at every step.
"""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from compress.settings import PositiveFloat, Settings
from compress.types import FloatImages

_SPAWN_KEY = (0x6D6978,)  # other numbers of the same seed, epoch and step decide the order of images and dropout

ClassNumbers = Int[Tensor, " B"]
SoftLabels = Float[Tensor, "B C"]


@final
class Mixing(Settings):
    """Mix the images of a batch and their labels; DeiT (arXiv 2012.12877) has mixup_alpha 0.8 and cutmix_alpha 1.

    Labels become shares of classes, so the method must take such labels; stored teacher logits can not be used.
    """

    mixup_alpha: PositiveFloat | None = None
    """Images are blended; the share is drawn from Beta(alpha, alpha). Small: mostly near 0 or 1; 1: uniform."""
    cutmix_alpha: PositiveFloat | None = None
    """A box of the other image is put in; the part that it leaves is drawn from Beta(alpha, alpha)."""
    probability: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Probability with which a batch is mixed."""
    switch_probability: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Probability of CutMix instead of mixup where both are there; 0.5 if not set."""

    @model_validator(mode="after")
    def _mixes(self) -> Mixing:
        if self.mixup_alpha is None and self.cutmix_alpha is None:
            raise ValueError("mixing without mixup_alpha and cutmix_alpha does nothing; set one, or leave mixing out")
        if self.switch_probability is not None and (self.mixup_alpha is None or self.cutmix_alpha is None):
            raise ValueError("switch_probability chooses between mixup and CutMix; set both alphas or leave it out")
        return self


class Box(NamedTuple):
    """Pixels of an image, the ends not included."""

    left: int
    top: int
    right: int
    bottom: int


class Mix(NamedTuple):
    """How one batch is mixed."""

    share: float
    """Part of each image that stays, and of its label; 1 leaves the batch as it is."""
    box: Box | None = None
    """What comes from the partner, in CutMix; None: all pixels are blended."""


def mix(
    images: FloatImages,
    labels: ClassNumbers,
    num_classes: int,
    *,
    settings: Mixing,
    seed: int,
    epoch: int,
    step: int,
) -> tuple[FloatImages, SoftLabels]:
    """Mixed images and their labels as shares of classes, on the images' device; the arguments stay as they are.

    The same settings, image size, seed, epoch and step mix in the same way everywhere.
    """
    drawn = draw_mix(settings, (images.shape[2], images.shape[3]), seed=seed, epoch=epoch, step=step)
    return mix_images(images, drawn), mix_labels(labels, num_classes, drawn.share)


def draw_mix(settings: Mixing, size: tuple[int, int], *, seed: int, epoch: int, step: int) -> Mix:
    """The mix of one batch of images of a height and width; drawn on the host, so that no device has to wait."""
    generator = np.random.default_rng(np.random.SeedSequence((seed, epoch, step), spawn_key=_SPAWN_KEY))
    chance, switch, center_y, center_x = generator.random(4).tolist()
    if chance >= settings.probability:
        return Mix(1.0)
    if settings.mixup_alpha is not None and (
        settings.cutmix_alpha is None or switch >= (settings.switch_probability or 0.5)
    ):
        return Mix(generator.beta(settings.mixup_alpha, settings.mixup_alpha))
    assert settings.cutmix_alpha is not None
    height, width = size
    box = cut_box(
        height,
        width,
        share=generator.beta(settings.cutmix_alpha, settings.cutmix_alpha),
        center=(int(center_y * height), int(center_x * width)),
    )
    # The box may have been clipped; the labels get what is really there.
    return Mix(1.0 - (box.bottom - box.top) * (box.right - box.left) / (height * width), box)


def cut_box(height: int, width: int, *, share: float, center: tuple[int, int]) -> Box:
    """The box around a centre (row, column) that leaves a share of an image, clipped at the borders."""
    ratio = math.sqrt(1.0 - share)
    box_height, box_width = int(height * ratio), int(width * ratio)
    row, column = center
    return Box(
        left=max(0, column - box_width // 2),
        top=max(0, row - box_height // 2),
        right=min(width, column + (box_width + 1) // 2),
        bottom=min(height, row + (box_height + 1) // 2),
    )


def mix_images(images: FloatImages, drawn: Mix) -> FloatImages:
    """Each image with the one in its mirrored place of the batch; the images themselves where all of them stays."""
    if drawn.share == 1.0:
        return images
    if drawn.box is None:
        return images * drawn.share + images.flip(0) * (1.0 - drawn.share)
    left, top, right, bottom = drawn.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    return mixed


def mix_labels(labels: ClassNumbers, num_classes: int, share: float) -> SoftLabels:
    """Shares of classes: each row has `share` for its own class and the rest for its partner's."""
    # Not one_hot(): it reads the labels back, and the device has to stop for that.
    own = torch.zeros(len(labels), num_classes, device=labels.device).scatter_(1, labels.long()[:, None], 1.0)
    return own * share + own.flip(0) * (1.0 - share)
