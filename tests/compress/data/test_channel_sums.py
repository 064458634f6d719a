"""Channel statistics are exact."""

from __future__ import annotations

import numpy as np
import pytest

from compress.data import channel_sums as module
from compress.data.channel_sums import channel_statistics, channel_sums


def test_statistics_equal_those_of_all_pixels_at_once() -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 5, 6, 3), dtype=np.uint8)
    total = np.sum([channel_sums(image) for image in images], axis=0)
    mean, std = channel_statistics(total, images.size // 3)
    values = images.reshape(-1, 3) / 255
    assert mean == pytest.approx(values.mean(axis=0), abs=1e-15)
    assert std == pytest.approx(values.std(axis=0), abs=1e-15)


def test_sums_of_a_picture_larger_than_one_block_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 50)
    image = np.random.default_rng(1).integers(0, 256, (13, 17, 3), dtype=np.uint8)
    wide = image.reshape(-1, 3).astype(np.int64)
    assert np.array_equal(channel_sums(image), [wide.sum(axis=0), (wide**2).sum(axis=0)])


def test_sums_beyond_64_bits_when_squared_do_not_overflow() -> None:
    num_pixels = 10**12
    total = np.array([[255 * num_pixels // 2] * 3, [255**2 * num_pixels // 2] * 3])
    assert channel_statistics(total, num_pixels) == ((0.5,) * 3, (0.5,) * 3)


def test_constant_channel_gets_a_std_that_one_can_divide_by() -> None:
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    image[..., 0] = 51
    assert channel_statistics(channel_sums(image), 16) == ((0.2, 0.0, 0.0), (1.0, 1.0, 1.0))
