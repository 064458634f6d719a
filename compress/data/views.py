"""Augmentation as a pure function of (seed, image, view slot).

A view does not depend on the batch it is in, on the order of images or on who computes it. So a teacher's answers can
be stored for views that students see later, and a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Literal, final

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from pydantic import Field, model_validator

from compress.data.counter_hash import Keys, combine, seed_key, uniforms
from compress.data.decoding import Pixels
from compress.data.prepared import PreparedSplit, stack_in_threads
from compress.data.preprocessing import RESAMPLING, Interpolation
from compress.settings import PositiveFloat, Settings
from compress.types import ByteImages, ImageArray, IndexArray

_TIE_BITS = np.uint64(20)  # hold any slot of the largest pad
_NUM_TRIES = 10  # torchvision's RandomResizedCrop


class ViewRule(Settings, ABC):
    """How views are made from an image."""

    @property
    @abstractmethod
    def num_views(self) -> int | None:
        """Different views of one image, the slots 0..num_views - 1; None: unlimited, every slot is a new draw."""

    @abstractmethod
    def make(self, split: PreparedSplit, *, indices: IndexArray, keys: Keys, slots: IndexArray) -> ByteImages:
        """Views of images; `keys` holds one random key for each, from seed and index."""


@final
class NoAugmentation(ViewRule):
    """The image as evaluation sees it."""

    name: Literal["none"] = "none"

    @property
    def num_views(self) -> int:
        return 1

    def make(self, split: PreparedSplit, *, indices: IndexArray, keys: Keys, slots: IndexArray) -> ByteImages:
        return split.images(indices)


@final
class PadCropFlip(ViewRule):
    """Black padding, a crop of the original size, perhaps mirrored: the usual CIFAR augmentation.

    Equal to torchvision's RandomCrop(size, padding=pad) and RandomHorizontalFlip, pixel for pixel.
    """

    name: Literal["pad_crop_flip"] = "pad_crop_flip"
    pad: Annotated[int, Field(ge=0, le=64)] = 4
    """Pixels added on each side; the image moves by up to this much."""
    flip: bool = True
    """Mirror half of the views left to right. Off where the side matters, as in digits."""

    @property
    def num_views(self) -> int:
        return (2 * self.pad + 1) ** 2 * (2 if self.flip else 1)

    def make(self, split: PreparedSplit, *, indices: IndexArray, keys: Keys, slots: IndexArray) -> ByteImages:
        num_steps = 2 * self.pad + 1
        views = permuted(slots, keys, num_views=self.num_views)
        mirrored, places = np.divmod(views, num_steps**2)
        tops, lefts = np.divmod(places, num_steps)
        images = split.images(indices).numpy()
        return torch.from_numpy(
            pad_crop_flip(images, pad=self.pad, tops=tops, lefts=lefts, mirrored=mirrored.astype(np.bool_))
        )


@final
class RandomResizedCropFlip(ViewRule):
    """A crop of random area and aspect ratio, resized to the image size, mirrored or not: the ImageNet augmentation.

    The draw is that of torchvision's RandomResizedCrop: ten tries for a crop that fits, then the largest centred one
    with an allowed ratio. Encoded pictures are cropped at their full size.
    """

    name: Literal["random_resized_crop_flip"] = "random_resized_crop_flip"
    min_scale: Annotated[float, Field(gt=0.0, le=1.0)] = 0.08
    """Smallest part of the picture's area that a crop keeps."""
    max_scale: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Largest part."""
    min_ratio: PositiveFloat = 3 / 4
    """Smallest width / height of a crop."""
    max_ratio: PositiveFloat = 4 / 3
    """Largest width / height."""
    flip: bool = True
    """Mirror half of the views left to right."""
    interpolation: Interpolation = "bilinear"
    """Filter of the resizing."""

    @model_validator(mode="after")
    def _is_ordered(self) -> RandomResizedCropFlip:
        for low, high in (("min_scale", "max_scale"), ("min_ratio", "max_ratio")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} {getattr(self, low)} is above {high} {getattr(self, high)}; swap them")
        return self

    @property
    def num_views(self) -> None:
        return None

    def make(self, split: PreparedSplit, *, indices: IndexArray, keys: Keys, slots: IndexArray) -> ByteImages:
        counters = np.arange(4 * _NUM_TRIES + 1)
        draws = uniforms(combine(combine(keys, slots)[:, None], counters))

        def crop(picture: Image.Image, place: int) -> Pixels:
            box = self.draw_box(picture.width, picture.height, draws=draws[place])
            # Not resize(box=…): its filter reads beyond the box, and torchvision's does not.
            resized = picture.crop(box).resize((split.width, split.height), RESAMPLING[self.interpolation])
            view = np.asarray(resized)
            return view[:, ::-1] if self.flip and draws[place, -1] < 0.5 else view

        return stack_in_threads(split, indices, transform=crop)

    def draw_box(self, width: int, height: int, *, draws: Float64[np.ndarray, " draws"]) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the crop of a picture, from 4 numbers in [0, 1) for each try."""
        low, high = math.log(self.min_ratio), math.log(self.max_ratio)
        for area_draw, ratio_draw, x_draw, y_draw in draws[:-1].reshape(_NUM_TRIES, 4).tolist():
            area = width * height * (self.min_scale + (self.max_scale - self.min_scale) * area_draw)
            ratio = math.exp(low + (high - low) * ratio_draw)
            crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                left = int(x_draw * (width - crop_width + 1))
                top = int(y_draw * (height - crop_height + 1))
                return left, top, left + crop_width, top + crop_height
        return self._largest_centred_box(width, height)

    def _largest_centred_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        crop_width, crop_height = width, height
        if width < self.min_ratio * height:
            crop_height = max(1, round(width / self.min_ratio))
        elif width > self.max_ratio * height:
            crop_width = max(1, round(height * self.max_ratio))
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
        return left, top, left + crop_width, top + crop_height


Augmentation = Annotated[NoAugmentation | PadCropFlip | RandomResizedCropFlip, Field(discriminator="name")]
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


def pad_crop_flip(
    images: ImageArray,
    *,
    pad: int,
    tops: Int64[np.ndarray, " B"],
    lefts: Int64[np.ndarray, " B"],
    mirrored: Bool[np.ndarray, " B"],
) -> ImageArray:
    """Cut each image, padded with black, at its place, then mirror some; places count from the padded corner."""
    num_images, height, width, _ = images.shape
    padded = np.zeros((num_images, height + 2 * pad, width + 2 * pad, 3), dtype=np.uint8)
    padded[:, pad : pad + height, pad : pad + width] = images
    colors = padded.view("V3")[..., 0]  # one element for each pixel: moving elements is what costs here
    views = sliding_window_view(colors, (height, width), axis=(1, 2))[np.arange(num_images), tops, lefts]
    views[mirrored] = views[mirrored, :, ::-1]
    return views[..., None].view(np.uint8)


def permuted(slots: IndexArray, keys: Keys, *, num_views: int) -> IndexArray:
    """The view in each slot, under a random permutation of 0..num_views - 1 of each key's own.

    A view is the rank of its slot's random number among those of all slots: every permutation is equally likely, and
    a rank needs no sorting.
    """
    counters = np.arange(num_views)
    numbers = combine(keys[:, None], counters)
    numbers = numbers >> _TIE_BITS << _TIE_BITS | counters.astype(np.uint64)  # never two equal ones
    own = np.take_along_axis(numbers, slots[:, None], axis=1)
    return (numbers < own).sum(axis=1)


__all__ = [
    "Augmentation",
    "NoAugmentation",
    "PadCropFlip",
    "RandomResizedCropFlip",
    "ViewRule",
    "pad_crop_flip",
    "permuted",
    "view_images",
]
