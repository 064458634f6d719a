"""A data set in the memory of the training device.

CIFAR takes 154 MB. With its pixels on the GPU an epoch needs one copy from the host, the order of its images; views are
numbered and cut out there, for many batches at once, because a launch costs more than the work of a small batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

import numpy as np
import torch
from PIL import Image

from compress.batches import Portion
from compress.data.device_views import ColorTable, DeviceAugmentation, make_views, view_numbers
from compress.data.prepared import PreparedSplit
from compress.objective import StepInput
from compress.resident_teacher import Places
from compress.tensors import as_float_images, to_device
from compress.types import ByteImages, IndexArray, Labels

IMAGES_AT_ONCE = 4096
"""That are copied from the host together."""
PIXELS_AT_ONCE = 1 << 22
"""Of views that are cut out together: those of 64 batches of 64 CIFAR images, or of 83 images of 224 pixels."""


@final
class ResidentSplit(PreparedSplit):
    """The images of another split in device memory; `picture` still comes from that one."""

    def __init__(self, split: PreparedSplit, device: torch.device) -> None:
        self._split = split
        self.labels = split.labels
        self.height, self.width = split.height, split.width
        self.colors = _colors(split, device)
        self.device_labels = to_device(torch.from_numpy(np.array(split.labels)), device)

    @property
    def device(self) -> torch.device:
        """Where the pixels are."""
        return self.colors.device

    def images(self, indices: IndexArray) -> ByteImages:
        self.check_indices(indices)
        return self._stack()[to_device(torch.from_numpy(indices), self.device)]

    def picture(self, index: int) -> Image.Image:
        return self._split.picture(index)

    def batches(self, batch_size: int) -> Iterator[tuple[ByteImages, Labels]]:
        return zip(self._stack().split(batch_size), self.device_labels.split(batch_size), strict=True)

    def _stack(self) -> ByteImages:
        return self.colors[:-1].view(len(self), self.height, self.width, 3)


def pixel_bytes(split: PreparedSplit) -> int:
    """Device memory that the pixels of a split take."""
    return len(split) * split.height * split.width * 3


def resident_batches(
    train: ResidentSplit, portions: Sequence[Portion], augmentation: DeviceAugmentation, *, seed: int, epoch: int
) -> Iterator[StepInput]:
    """The views of these portions as the objective takes them: the bits of `epoch_batches` and `on_device`, unmixed.

    `seed` chooses the views; epochs count from 0.
    """
    indices, slots = (np.concatenate([portion[part] for portion in portions]) for part in (0, 1))
    train.check_indices(indices)
    places = Places(*(to_device(torch.from_numpy(each), train.device) for each in (indices, slots)))
    numbers = view_numbers(augmentation, *places, seed=seed)
    size = train.height, train.width
    end = 0
    for group in _groups(portions, size):
        lengths = [len(portion.indices) for portion in group]
        start, end = end, end + sum(lengths)
        near = slice(start, end)
        views = make_views(train.colors, size, augmentation, indices=places.indices[near], numbers=numbers[near])
        images = as_float_images(views, train.device).split(lengths)
        labels = train.device_labels[places.indices[near]].split(lengths)
        own = zip(places.indices[near].split(lengths), places.slots[near].split(lengths), strict=True)
        for portion, some, of_some, where in zip(group, images, labels, own, strict=True):
            yield StepInput(some, of_some, portion.indices, portion.slots, epoch + 1, portion.whole, Places(*where))


def _groups(portions: Sequence[Portion], size: tuple[int, int]) -> Iterator[list[Portion]]:
    """Portions in order, as many together as are worth one launch."""
    largest = max(1, PIXELS_AT_ONCE // (size[0] * size[1]))
    group: list[Portion] = []
    num_images = 0
    for portion in portions:
        if group and num_images + len(portion.indices) > largest:
            yield group
            group, num_images = [], 0
        group.append(portion)
        num_images += len(portion.indices)
    if group:
        yield group


def _colors(split: PreparedSplit, device: torch.device) -> ColorTable:
    """All pixels and a black one; copied piece by piece, for a split may be larger than the host's free memory."""
    num_pixels = split.height * split.width
    colors = torch.zeros(len(split) * num_pixels + 1, 3, dtype=torch.uint8, device=device)
    for start in range(0, len(split), IMAGES_AT_ONCE):
        indices = np.arange(start, min(start + IMAGES_AT_ONCE, len(split)), dtype=np.int64)
        images = split.images(indices)
        colors[start * num_pixels : (start + len(indices)) * num_pixels] = images.view(-1, 3).to(device)
    return colors
