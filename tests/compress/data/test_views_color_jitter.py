"""Colour jitter: torchvision's operations in the drawn order, with amounts from torchvision's ranges."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from torchvision import transforms
from torchvision.transforms import functional

from compress.data.color_jitter import Adjustment, ColorJitter
from compress.data.counter_hash import combine, seed_key, uniform_rows
from tests.compress.data.pictures import smooth
from tests.compress.data.uniformity import assert_uniform

ALL = ColorJitter(brightness=0.4, contrast=0.3, saturation=1.5, hue=0.1)
TORCHVISION = {
    "brightness": functional.adjust_brightness,
    "contrast": functional.adjust_contrast,
    "saturation": functional.adjust_saturation,
    "hue": functional.adjust_hue,
}


def rows(num_views: int) -> list[list[float]]:
    return uniform_rows(combine(seed_key(0), np.arange(num_views)), ALL.num_draws).tolist()


def drawn(settings: ColorJitter, num_views: int) -> list[list[Adjustment]]:
    return [settings.draw(row) for row in rows(num_views)]


def test_draws_of_today_are_those_of_tomorrow() -> None:
    found = [[(name, round(amount, 6)) for name, amount in view] for view in drawn(ALL, 3)]
    assert found == [
        [("brightness", 1.126215), ("saturation", 2.174383), ("hue", -0.065403), ("contrast", 0.889054)],
        [("brightness", 0.875881), ("saturation", 0.357854), ("contrast", 0.93418), ("hue", 0.019077)],
        [("brightness", 0.647989), ("contrast", 0.881143), ("saturation", 1.153971), ("hue", -0.061029)],
    ]


def test_a_view_is_torchvisions_operations_in_the_drawn_order() -> None:
    picture = smooth(2, 40, 30)
    for row in rows(40):
        expected = picture
        for name, amount in ALL.draw(row):
            expected = TORCHVISION[name](expected, amount)
        assert ALL.apply(picture, row).tobytes() == expected.tobytes()


def test_all_24_orders_are_equally_likely() -> None:
    counts = collections.Counter(tuple(name for name, _ in view) for view in drawn(ALL, 5000))
    assert len(counts) == 24
    assert_uniform(np.array(list(counts.values())))


def test_amounts_are_uniform_over_torchvisions_ranges() -> None:
    reference = transforms.ColorJitter(ALL.brightness, ALL.contrast, ALL.saturation, ALL.hue)
    amounts = [dict(view) for view in drawn(ALL, 3000)]
    for name in TORCHVISION:
        low, high = getattr(reference, name)
        values = np.array([each[name] for each in amounts])
        assert low <= values.min()
        assert values.max() <= high
        assert_uniform(np.histogram(values, bins=10, range=(low, high))[0])


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_property_without_a_range_is_left_alone(name: str) -> None:
    settings = ColorJitter.model_validate({name: 0.2})
    assert {adjustment.property for view in drawn(settings, 20) for adjustment in view} == {name}
    assert all(len(view) == 1 for view in drawn(settings, 20))
