"""Augmentation of small images: padding, cropping and mirroring whole batches in numpy, with or without rotation."""

from __future__ import annotations

import math
from typing import Annotated, Literal, final

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import Field

from compress.data.counter_hash import Keys, combine, uniform_rows
from compress.data.prepared import PreparedSplit
from compress.data.view_rule import ViewRule
from compress.types import ByteImages, ImageArray, IndexArray

Pad = Annotated[int, Field(ge=0, le=64)]

_TIE_BITS = np.uint64(20)  # hold any slot of the largest pad
_FIXED_POINT = 65536.0  # Pillow turns an image in steps of 1/65536 pixel


@final
class PadCropFlip(ViewRule):
    """Black padding, a crop of the original size, perhaps mirrored: the usual CIFAR augmentation.

    Equal to torchvision's RandomCrop(size, padding=pad) and RandomHorizontalFlip, pixel for pixel.
    """

    name: Literal["pad_crop_flip"] = "pad_crop_flip"
    pad: Pad = 4
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
class PadCropFlipRotate(ViewRule):
    """The usual CIFAR augmentation, then a rotation about the centre: that of Tf-KD on CIFAR-100.

    Li Yuan et al., Revisiting Knowledge Distillation via Label Smoothing Regularization (arXiv 1909.11723) crop with
    padding 4, mirror and turn by up to 15 degrees. Equal to torchvision's RandomCrop(size, padding=pad),
    RandomHorizontalFlip and RandomRotation(max_degrees), pixel for pixel: nearest pixel, black corners, uniform angle.
    """

    name: Literal["pad_crop_flip_rotate"] = "pad_crop_flip_rotate"
    pad: Pad = 4
    """Pixels added on each side; the image moves by up to this much."""
    flip: bool = True
    """Mirror half of the views left to right. Off where the side matters, as in digits."""
    max_degrees: Annotated[float, Field(gt=0.0, le=180.0)] = 15.0
    """The angle is uniform between minus this and this."""

    @property
    def num_views(self) -> None:
        return None

    def make(self, split: PreparedSplit, *, indices: IndexArray, keys: Keys, slots: IndexArray) -> ByteImages:
        draws = uniform_rows(combine(keys, slots), 4)
        num_steps = 2 * self.pad + 1
        tops, lefts = ((draws[:, column] * num_steps).astype(np.int64) for column in (0, 1))
        mirrored = (draws[:, 2] < 0.5) & self.flip
        views = pad_crop_flip(split.images(indices).numpy(), pad=self.pad, tops=tops, lefts=lefts, mirrored=mirrored)
        return torch.from_numpy(rotate(views, self.max_degrees * (2 * draws[:, 3] - 1)))


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


def rotate(images: ImageArray, degrees: Float64[np.ndarray, " B"]) -> ImageArray:
    """Turn each image counter-clockwise about its centre: the nearest pixel, black where there is none.

    The arithmetic is that of Pillow's Image.rotate, in fixed point, for a whole batch: half its time for small images.
    """
    num_images, height, width, _ = images.shape
    affine = np.array([_inverse_rotation(angle, height, width) for angle in degrees.tolist()]).reshape(-1, 2, 3)
    fixed = np.floor(affine * _FIXED_POINT + 0.5).astype(np.int32)[..., None, None]
    ys, xs = np.arange(height, dtype=np.int32)[:, None], np.arange(width, dtype=np.int32)
    columns = (fixed[:, 0, 2] + fixed[:, 0, 1] * ys + fixed[:, 0, 0] * xs) >> 16
    rows = (fixed[:, 1, 2] + fixed[:, 1, 1] * ys + fixed[:, 1, 0] * xs) >> 16
    is_inside = (columns.view(np.uint32) < width) & (rows.view(np.uint32) < height)  # below zero is very large
    colors = np.zeros((num_images, height * width + 1), dtype="V3")  # one element for each pixel; the last is black
    colors[:, :-1] = np.ascontiguousarray(images).view("V3").reshape(num_images, height * width)
    places = np.where(is_inside, rows * width + columns, height * width).astype(np.int64)
    places += (np.arange(num_images) * (height * width + 1))[:, None, None]
    return colors.reshape(-1).take(places)[..., None].view(np.uint8)


def _inverse_rotation(degrees: float, height: int, width: int) -> list[list[float]]:
    """Where the middle of the pixel in column 0, row 0 comes from, and how far each step moves that."""
    # Modulo and rounding are Pillow's, so that even the last bit agrees.
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    left, top = -x * cos - y * sin + x, x * sin - y * cos + y
    return [[cos, sin, left + cos * 0.5 + sin * 0.5], [-sin, cos, top - sin * 0.5 + cos * 0.5]]


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
