"""A few images of a split, for comparisons and examples."""

from __future__ import annotations

import numpy as np

from compress.data.prepared import PreparedData, PreparedSplit
from compress.data.source import SplitName
from compress.image_files import stored_files
from compress.types import ImageArray, IndexArray


def sample_images(split: PreparedSplit, count: int) -> ImageArray:
    """At most `count` images drawn from all classes, always the same ones; the first of a split are of one class."""
    return split.images(_chosen(len(split), count)).numpy()


def sample_files(data: PreparedData, split: SplitName, count: int) -> list[bytes]:
    """The same pictures as image files."""
    return stored_files(data, split, _chosen(len(data.split(split)), count))


def _chosen(num_images: int, count: int) -> IndexArray:
    chosen = np.random.default_rng(0).permutation(num_images)[:count]
    return np.sort(chosen).astype(np.int64)
