"""One box of each chosen view, filled with noise.

Zhun Zhong et al., Random Erasing Data Augmentation (arXiv 1708.04896), with timm's ranges: area 2 % to a third of the
image, height / width 0.3 to 1 / 0.3, ten tries for a box that is smaller than the image on both sides.

timm erases after normalisation and fills with normal noise, one number for each pixel and channel. Views are bytes, so
the noise here is what that noise looks like before a normalisation with ImageNet's mean and deviation: normal around
the mean, rounded to 1 / 255 and cut off at black and white. A network that normalises like this sees standard normal
noise in steps of 0.017, cut off near -2 and 2.4, which concerns one number in 30; one with statistics of its own sees
noise of slightly other mean and spread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import UInt8, UInt64

from compress.data.counter_hash import random_shorts
from compress.data.decoding import Pixels

_NUM_TRIES = 10
NUM_DRAWS = 4 * _NUM_TRIES + 1
"""Numbers that a view takes: whether, then area, ratio, top and left for each try."""

_MIN_AREA, _MAX_AREA = 0.02, 1 / 3
_MAX_LOG_RATIO = -math.log(0.3)
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)

Box = tuple[int, int, int, int]


def erase(pixels: Pixels, draws: Sequence[float], *, probability: float, key: UInt64[np.ndarray, " 1"]) -> Pixels:
    """The pixels, with the drawn probability a copy in which a box is noise; `key` chooses the noise."""
    height, width, _ = pixels.shape
    box = draw_erased_box(width, height, draws, probability=probability)
    if box is None:
        return pixels
    left, top, right, bottom = box
    erased = pixels.copy()
    erased[top:bottom, left:right] = noise(bottom - top, right - left, key)
    return erased


def draw_erased_box(width: int, height: int, draws: Sequence[float], *, probability: float) -> Box | None:
    """Left, top, right, bottom of the erased box, from numbers in [0, 1); None: nothing is erased."""
    if draws[0] >= probability:
        return None
    for start in range(1, NUM_DRAWS, 4):
        area_draw, ratio_draw, top_draw, left_draw = draws[start : start + 4]
        area = width * height * (_MIN_AREA + (_MAX_AREA - _MIN_AREA) * area_draw)
        ratio = math.exp(_MAX_LOG_RATIO * (2 * ratio_draw - 1))
        box_height, box_width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width < width and 0 < box_height < height:
            top = int(top_draw * (height - box_height + 1))
            left = int(left_draw * (width - box_width + 1))
            return left, top, left + box_width, top + box_height
    return None


def noise(height: int, width: int, key: UInt64[np.ndarray, " 1"]) -> Pixels:
    """Normal noise around ImageNet's mean colour; the same for the same key."""
    draws = random_shorts(key, height * width * 3).reshape(height, width, 3)
    return np.stack([_normal_bytes(channel)[draws[..., channel]] for channel in range(3)], axis=-1)


@cache
def _normal_bytes(channel: int) -> UInt8[np.ndarray, " 65536"]:
    """The value for each of 65536 equally likely draws: a table gives the same bits on every machine."""
    mean, deviation = 255 * _MEAN[channel], 255 * _DEVIATION[channel]
    edges = [math.erf((value + 0.5 - mean) / (deviation * math.sqrt(2))) for value in range(255)]
    positions = np.round((np.array(edges) + 1) / 2 * 65536)
    return np.searchsorted(positions, np.arange(65536), side="right").astype(np.uint8)
