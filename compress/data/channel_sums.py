"""Channel statistics without rounding: integer sums for each image, floats only at the end."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from compress.data.decoding import Pixels

ChannelSums = Int64[np.ndarray, "2 3"]
"""Sum and sum of squares of each channel's bytes."""

_BLOCK = 1 << 18


class ChannelStatistics(NamedTuple):
    """Mean and population standard deviation of red, green, blue, in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def channel_sums(pixels: Pixels) -> ChannelSums:
    """Sums over one image."""
    total = np.zeros((2, 3), dtype=np.int64)
    flat = pixels.reshape(-1, 3)
    for start in range(0, len(flat), _BLOCK):
        values = flat[start : start + _BLOCK].astype(np.float64)
        ones = np.ones(len(values))  # a matrix product is the fastest sum, and exact: integers below 2**53
        total[0] += (ones @ values).astype(np.int64)
        total[1] += (ones @ (values * values)).astype(np.int64)
    return total


def channel_statistics(total: ChannelSums, num_pixels: int) -> ChannelStatistics:
    """Statistics from sums over images with `num_pixels` pixels together; a constant channel gets std 1."""
    mean: list[float] = []
    std: list[float] = []
    for first, second in zip(*total.tolist(), strict=True):
        mean.append(first / (255 * num_pixels))
        variance = num_pixels * second - first * first  # times num_pixels**2: Python's integers do not overflow
        std.append(math.sqrt(variance) / (255 * num_pixels) if variance else 1.0)
    return ChannelStatistics((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
