"""Augmentation of photographs: a random crop, resized, with as much of the strong recipes as is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Literal, NamedTuple, final

import numpy as np
from jaxtyping import Float64, UInt64
from PIL import Image
from pydantic import Field, model_validator

from compress.data.color_jitter import ColorJitter
from compress.data.counter_hash import Keys, combine, uniform_rows
from compress.data.decoding import Pixels
from compress.data.prepared import PreparedSplit, stack_in_threads
from compress.data.preprocessing import RESAMPLING, Interpolation
from compress.data.rand_augment import RandAugment
from compress.data.random_erasing import NUM_DRAWS as NUM_ERASING_DRAWS
from compress.data.random_erasing import erase
from compress.data.view_rule import ViewRule
from compress.settings import PositiveFloat
from compress.types import ByteImages, IndexArray

_NUM_TRIES = 10  # torchvision's RandomResizedCrop
_NUM_CROP_DRAWS = 4 * _NUM_TRIES + 1  # the last one mirrors

# Counters of a view's key beyond those of the crop. Every part draws from a key of its own, so that switching one on
# leaves the crops and the other parts as they are.
_FILTER, _RAND_AUGMENT, _JITTER, _ERASING, _NOISE = range(_NUM_CROP_DRAWS, _NUM_CROP_DRAWS + 5)

ViewKeys = UInt64[np.ndarray, " B"]
ViewMaker = Callable[[Image.Image, int], Pixels]
"""A picture and its place in the batch to a view."""


class _Part(NamedTuple):
    """An optional change of the cropped picture, from numbers in [0, 1)."""

    counter: int
    num_draws: int
    apply: Callable[[Image.Image, Sequence[float]], Image.Image]


@final
class RandomResizedCropFlip(ViewRule):
    """A crop of random area and aspect ratio, resized to the image size, mirrored or not: the ImageNet augmentation.

    The draw is that of torchvision's RandomResizedCrop: ten tries for a crop that fits, then the largest centred one
    with an allowed ratio. Encoded pictures are cropped at their full size. The optional parts follow in timm's order:
    RandAugment, colour jitter, erasing.
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
    interpolation: Literal[Interpolation, "random"] = "bilinear"
    """Filter of the resizing and of RandAugment's geometry; random: one of the two each time, as timm does."""
    rand_augment: RandAugment | None = None
    """Random operations on colours and geometry; {} is the standard of the strong recipes."""
    color_jitter: ColorJitter | None = None
    """Random brightness, contrast, saturation and hue; recipes with RandAugment do without."""
    erase_probability: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Probability with which a box of the view becomes noise; 0.25 is usual."""

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
        view_keys = combine(keys, slots)
        crops = uniform_rows(view_keys, _NUM_CROP_DRAWS)
        resamplings = self._resamplings
        filters = [resamplings[int(draw * len(resamplings))] for (draw,) in _part_draws(view_keys, _FILTER, 1)]
        parts = [(part.apply, _part_draws(view_keys, part.counter, part.num_draws)) for part in self._parts()]

        def view(picture: Image.Image, place: int) -> Pixels:
            box = self.draw_box(picture.width, picture.height, draws=crops[place])
            # Not resize(box=…): its filter reads beyond the box, and torchvision's does not.
            picture = picture.crop(box).resize((split.width, split.height), filters[place])
            if self.flip and crops[place, -1] < 0.5:
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            for apply, draws in parts:
                picture = apply(picture, draws[place])
            return np.asarray(picture)

        if self.erase_probability is None:
            return stack_in_threads(split, indices, transform=view)
        return stack_in_threads(split, indices, transform=_erasing(view, view_keys, self.erase_probability))

    @property
    def _resamplings(self) -> tuple[Image.Resampling, ...]:
        return tuple(RESAMPLING.values()) if self.interpolation == "random" else (RESAMPLING[self.interpolation],)

    def _parts(self) -> Iterator[_Part]:
        if self.rand_augment is not None:
            apply = partial(self.rand_augment.apply, resamplings=self._resamplings)
            yield _Part(_RAND_AUGMENT, self.rand_augment.num_draws, apply)
        if self.color_jitter is not None:
            yield _Part(_JITTER, self.color_jitter.num_draws, self.color_jitter.apply)

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


def _part_draws(view_keys: ViewKeys, counter: int, num_draws: int) -> list[list[float]]:
    return uniform_rows(combine(view_keys, np.array(counter)), num_draws).tolist()


def _erasing(view: ViewMaker, view_keys: ViewKeys, probability: float) -> ViewMaker:
    draws = _part_draws(view_keys, _ERASING, NUM_ERASING_DRAWS)
    noise_keys = combine(view_keys, np.array(_NOISE))

    def erased_view(picture: Image.Image, place: int) -> Pixels:
        key = noise_keys[place : place + 1]
        return erase(view(picture, place), draws[place], probability=probability, key=key)

    return erased_view
