"""Views of small images made where their pixels are: those of `views`, bit for bit, on any device.

The numbers are those of `counter_hash`. torch has no arithmetic on unsigned 64-bit integers; two's complement gives the
same bits for sums, products and exclusive or, a right shift loses the copies of its sign bit to a mask, and flipping
the sign bit makes comparisons unsigned.
"""

from __future__ import annotations

from typing import TypeGuard

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from compress.data.counter_hash import seed_key
from compress.data.pad_crop import PadCropFlip
from compress.data.views import Augmentation, NoAugmentation
from compress.types import ByteImages

_SIGN = -(2**63)
_GOLDEN = 0x9E3779B97F4A7C15
_TIES = 2**20 - 1  # the bits that `pad_crop.permuted` gives to the slot itself
_LARGEST_TABLE = 1 << 24
"""Random numbers that are held at once while views are numbered."""

Keys = Int64[Tensor, "..."]
Indices = Int64[Tensor, " B"]
ColorTable = UInt8[Tensor, "P 3"]
"""All pixels of all images, then a black one."""

DeviceAugmentation = NoAugmentation | PadCropFlip
"""What can be made here; the others need the stored pictures or Pillow's arithmetic."""


def mix(values: Keys) -> Keys:
    """`counter_hash.mix`."""
    values = (values ^ _shifted(values, 30)) * _signed(0xBF58476D1CE4E5B9)
    values = (values ^ _shifted(values, 27)) * _signed(0x94D049BB133111EB)
    return values ^ _shifted(values, 31)


def combine(keys: Keys, counters: Keys) -> Keys:
    """`counter_hash.combine`."""
    return mix(keys + (counters + 1) * _signed(_GOLDEN))


def view_numbers(augmentation: DeviceAugmentation, indices: Indices, slots: Indices, *, seed: int) -> Indices:
    """Which of an image's possible views is in its slot; for a whole epoch this is one call."""
    if isinstance(augmentation, NoAugmentation):
        return torch.zeros_like(indices)
    key = int(seed_key(seed).view(np.int64)[0])
    rows = max(1, _LARGEST_TABLE // augmentation.num_views)
    numbers = [
        _ranks(combine(torch.full_like(some, key), some), of_some, augmentation.num_views)
        for some, of_some in zip(indices.split(rows), slots.split(rows), strict=True)
    ]
    return torch.cat(numbers)


def make_views(
    colors: ColorTable, size: tuple[int, int], augmentation: DeviceAugmentation, *, indices: Indices, numbers: Indices
) -> ByteImages:
    """The views of images of a height and width that `view_numbers` counted, in one gather."""
    height, width = size
    if isinstance(augmentation, NoAugmentation):
        return colors[:-1].view(-1, height, width, 3).index_select(0, indices)
    rows, columns = _window(augmentation, size, numbers)
    is_inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    places = (indices[:, None, None] * height + rows) * width + columns
    places = torch.where(is_inside, places, len(colors) - 1)
    return colors.index_select(0, places.flatten()).view(len(indices), height, width, 3)


def _window(
    augmentation: PadCropFlip, size: tuple[int, int], numbers: Indices
) -> tuple[Int64[Tensor, "B H 1"], Int64[Tensor, "B 1 W"]]:
    """Rows and columns of the image that each view shows; beyond the image where it is padded."""
    height, width = size
    num_steps = 2 * augmentation.pad + 1
    mirrored, places = numbers // num_steps**2, numbers % num_steps**2
    tops, lefts = places // num_steps, places % num_steps
    across = _grid(width, numbers)
    columns = torch.where(mirrored[:, None] == 1, width - 1 - across, across) + lefts[:, None]
    rows = _grid(height, numbers) + tops[:, None]
    return (rows - augmentation.pad)[:, :, None], (columns - augmentation.pad)[:, None, :]


def _ranks(keys: Indices, slots: Indices, num_views: int) -> Indices:
    """`pad_crop.permuted`."""
    counters = torch.arange(num_views, device=keys.device)
    numbers = combine(keys[:, None], counters) & ~_TIES | counters
    ordered = numbers ^ _SIGN
    return (ordered < ordered.gather(1, slots[:, None])).sum(dim=1)


def _grid(length: int, like: Tensor) -> Int64[Tensor, " L"]:
    return torch.arange(length, device=like.device)


def _shifted(values: Keys, bits: int) -> Keys:
    return (values >> bits) & (2 ** (64 - bits) - 1)


def _signed(constant: int) -> int:
    """The number in -2**63..2**63 - 1 that has these 64 bits."""
    return constant - 2**64 if constant >= 2**63 else constant


def is_made_here(augmentation: Augmentation) -> TypeGuard[DeviceAugmentation]:
    """Whether `make_views` can make this augmentation's views."""
    return isinstance(augmentation, DeviceAugmentation)
