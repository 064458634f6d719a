"""Splits in memory, for tests of what is made of their images."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from compress.data.prepared import ArraySplit, PreparedSplit
from compress.data.views import Augmentation, view_images
from tests.compress.data.pictures import smooth


def array_split(num_images: int = 20, height: int = 32, width: int = 32) -> ArraySplit:
    """Noise images, all different."""
    pixels = np.random.default_rng(0).integers(0, 256, (num_images, height, width, 3), dtype=np.uint8)
    return ArraySplit(pixels, np.zeros(num_images, dtype=np.int64))


def smooth_split(num_images: int = 4, height: int = 24, width: int = 30) -> ArraySplit:
    """Images without edges, so that filters and colours show."""
    pixels = np.stack([np.asarray(smooth(seed, width, height)) for seed in range(num_images)])
    return ArraySplit(pixels, np.zeros(num_images, dtype=np.int64))


def views_of(
    split: PreparedSplit, augmentation: Augmentation, *, image: int = 0, num_slots: int = 6, seed: int = 0
) -> torch.Tensor:
    """The first views of one image."""
    indices = np.full(num_slots, image, dtype=np.int64)
    return view_images(split, augmentation, indices=indices, slots=np.arange(num_slots), seed=seed)


def digest(views: torch.Tensor) -> str:
    """A few letters that no other views have."""
    return hashlib.sha256(views.numpy().tobytes()).hexdigest()[:16]
