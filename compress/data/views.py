"""Augmentation as a pure function of (seed, image, view slot).

A view does not depend on the batch it is in, on the order of images or on who computes it. So a teacher's answers can
be stored for views that students see later, and a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, final

from pydantic import Field

from compress.data.color_jitter import ColorJitter
from compress.data.counter_hash import Keys, combine, seed_key
from compress.data.pad_crop import PadCropFlip, PadCropFlipRotate, pad_crop_flip, permuted
from compress.data.prepared import PreparedSplit
from compress.data.rand_augment import RandAugment
from compress.data.resized_crop import RandomResizedCropFlip
from compress.data.view_rule import ViewRule
from compress.types import ByteImages, IndexArray


@final
class NoAugmentation(ViewRule):
    """The image as evaluation sees it."""

    name: Literal["none"] = "none"

    @property
    def num_views(self) -> int:
        return 1

    def make(self, split: PreparedSplit, *, indices: IndexArray, keys: Keys, slots: IndexArray) -> ByteImages:
        return split.images(indices)


Augmentation = Annotated[
    NoAugmentation | PadCropFlip | PadCropFlipRotate | RandomResizedCropFlip, Field(discriminator="name")
]
"""Every augmentation."""


def view_images(
    split: PreparedSplit, augmentation: Augmentation, *, indices: IndexArray, slots: IndexArray, seed: int
) -> ByteImages:
    """View `slots[i]` of image `indices[i]`, for all i.

    Raises:
        IndexError: an index is not in the split.
        ValueError: a slot is negative, or the augmentation has fewer views.
    """
    limit = math.inf if augmentation.num_views is None else augmentation.num_views
    if len(slots) and not (int(slots.min()) >= 0 and int(slots.max()) < limit):
        raise ValueError(f"slots {slots.min()}..{slots.max()}: {augmentation.name} has the views 0..{limit - 1}")
    keys = combine(seed_key(seed), indices)
    return augmentation.make(split, indices=indices, keys=keys, slots=slots)


__all__ = [
    "Augmentation",
    "ColorJitter",
    "NoAugmentation",
    "PadCropFlip",
    "PadCropFlipRotate",
    "RandAugment",
    "RandomResizedCropFlip",
    "ViewRule",
    "pad_crop_flip",
    "permuted",
    "view_images",
]
