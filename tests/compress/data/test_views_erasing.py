"""Random erasing: boxes of the right size and place, filled with normal noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from compress.data.counter_hash import combine, seed_key, uniform_rows
from compress.data.random_erasing import NUM_DRAWS, Box, draw_erased_box, erase, noise
from tests.compress.data.array_splits import array_split
from tests.compress.data.uniformity import assert_uniform

MEAN = np.array([0.485, 0.456, 0.406])
DEVIATION = np.array([0.229, 0.224, 0.225])


def rows(num_views: int) -> list[list[float]]:
    return uniform_rows(combine(seed_key(0), np.arange(num_views)), NUM_DRAWS).tolist()


def boxes(width: int, height: int, *, num_views: int = 2000, probability: float = 1.0) -> list[Box]:
    drawn = [draw_erased_box(width, height, row, probability=probability) for row in rows(num_views)]
    return [box for box in drawn if box is not None]


def test_boxes_of_today_are_those_of_tomorrow() -> None:
    assert boxes(224, 224, num_views=3) == [(38, 114, 205, 212), (39, 124, 149, 223), (9, 115, 79, 220)]


def test_erased_area_and_ratio_fill_their_ranges() -> None:
    width, height = 640, 600
    found = boxes(width, height)
    sizes = np.array([(right - left, bottom - top) for left, top, right, bottom in found])
    areas, ratios = sizes.prod(axis=1) / (width * height), np.log(sizes[:, 1] / sizes[:, 0])
    assert len(found) == 2000
    # Sides are rounded to pixels: half a pixel of a side of 50 or more is 1 %.
    assert 0.0198 < areas.min() < 0.022
    assert 0.33 < areas.max() < 0.337
    assert -math.log(1 / 0.3) - 0.02 < ratios.min() < -1.1
    assert 1.1 < ratios.max() < math.log(1 / 0.3) + 0.02
    small = areas < 0.25  # larger ones of extreme ratio do not fit and are drawn again
    assert_uniform(np.histogram(areas[small], bins=10, range=(0.02, 0.25))[0])
    assert_uniform(np.histogram(ratios[small], bins=10, range=(-math.log(1 / 0.3), math.log(1 / 0.3)))[0])


@pytest.mark.parametrize(("width", "height"), [(224, 224), (32, 32), (5, 60), (3, 3), (2, 2)])
def test_boxes_lie_inside_and_are_smaller_than_the_image(width: int, height: int) -> None:
    for left, top, right, bottom in boxes(width, height, num_views=500):
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert right - left < width
        assert bottom - top < height


def test_boxes_reach_every_border() -> None:
    found = np.array(boxes(16, 16))
    assert found[:, :2].min(axis=0).tolist() == [0, 0]
    assert found[:, 2:].max(axis=0).tolist() == [16, 16]


def test_views_are_erased_with_the_given_probability() -> None:
    assert abs(len(boxes(64, 64, num_views=4000, probability=0.25)) - 1000) < 137  # 5 standard deviations


def test_an_image_of_one_pixel_can_not_be_erased() -> None:
    assert boxes(1, 1, num_views=20) == []


def test_noise_fills_the_box_and_nothing_else() -> None:
    pixels, row = array_split(1).images(np.array([0]))[0].numpy(), rows(1)[0]
    before = pixels.copy()
    left, top, right, bottom = boxes(32, 32, num_views=1)[0]
    erased = erase(pixels, row, probability=1.0, key=seed_key(3))
    assert np.array_equal(erased[top:bottom, left:right], noise(bottom - top, right - left, seed_key(3)))
    erased[top:bottom, left:right] = pixels[top:bottom, left:right]
    assert np.array_equal(erased, before)
    assert np.array_equal(pixels, before)


def test_noise_is_standard_normal_after_imagenets_normalisation() -> None:
    values = (noise(200, 200, seed_key(0)) / 255 - MEAN) / DEVIATION
    for channel in range(3):
        column = values[..., channel].ravel()
        # A normal number is below the quantile with its probability; 5 standard errors of 40,000 are 0.0125, and a
        # step of the bytes, 0.017, moves at most 0.007 of the probability.
        for quantile, probability in ((-1.5, 0.0668), (-1.0, 0.1587), (0.0, 0.5), (1.0, 0.8413), (2.0, 0.9772)):
            assert abs((column <= quantile).mean() - probability) < 0.02
        black, white = -MEAN[channel] / DEVIATION[channel], (1 - MEAN[channel]) / DEVIATION[channel]
        assert column.min() == pytest.approx(black)
        assert column.max() == pytest.approx(white)


def test_noise_of_pixels_and_channels_is_not_correlated() -> None:
    values = noise(100, 100, seed_key(1)).astype(np.float64)
    columns = [values[..., channel].ravel() for channel in range(3)]
    columns += [np.roll(columns[0], 1), np.roll(columns[0], 100)]
    correlations = np.corrcoef(columns)[~np.eye(5, dtype=bool)]
    assert np.abs(correlations).max() < 0.05  # 5 standard errors of 10,000 pairs


def test_another_key_gives_other_noise_and_the_same_key_the_same() -> None:
    assert np.array_equal(noise(8, 9, seed_key(1)), noise(8, 9, seed_key(1)))
    assert not np.array_equal(noise(8, 9, seed_key(1)), noise(8, 9, seed_key(2)))


def test_noise_of_today_is_that_of_tomorrow() -> None:
    assert noise(1, 3, seed_key(0)).ravel().tolist() == [123, 87, 167, 147, 88, 200, 144, 146, 208]
