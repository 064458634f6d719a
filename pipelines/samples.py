"""A few images of a split, for comparisons and examples."""

from __future__ import annotations

import numpy as np

from compress.data.prepared import PreparedSplit
from compress.types import ImageArray


def sample_images(split: PreparedSplit, count: int) -> ImageArray:
    """At most `count` images drawn from all classes, always the same ones; the first of a split are of one class."""
    chosen = np.random.default_rng(0).permutation(len(split))[:count]
    return split.images(np.sort(chosen).astype(np.int64)).numpy()
