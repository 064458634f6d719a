"""RandAugment: which operations, how strong, in which order."""

from __future__ import annotations

import collections
import statistics

import numpy as np
import pytest
from PIL import Image
from timm.data import auto_augment as timm_auto_augment

from compress.data.counter_hash import combine, seed_key, uniform_rows
from compress.data.preprocessing import RESAMPLING
from compress.data.rand_augment import OPERATIONS, DrawnOperation, RandAugment
from tests.compress.data.pictures import smooth
from tests.compress.data.test_views_operations import TIMM_NAMES
from tests.compress.data.uniformity import assert_uniform

BOTH = tuple(RESAMPLING.values())
NUM_VIEWS = 4000


def drawn(settings: RandAugment, num_views: int = NUM_VIEWS) -> list[list[DrawnOperation]]:
    rows = uniform_rows(combine(seed_key(0), np.arange(num_views)), settings.num_draws).tolist()
    return [settings.draw(row, BOTH) for row in rows]


def test_draws_of_today_are_those_of_tomorrow() -> None:
    found = [
        [(name, round(strength.level, 6), strength.sign) for name, strength in view] for view in drawn(RandAugment(), 6)
    ]
    assert found == [
        [],
        [("solarize", 0.912071, -1.0)],
        [("auto_contrast", 0.92154, -1.0), ("posterize", 0.856993, 1.0)],
        [("sharpness", 0.886398, 1.0)],
        [],
        [("invert", 0.995852, -1.0)],
    ]


def test_every_operation_sign_and_filter_is_equally_likely_in_every_place() -> None:
    views = drawn(RandAugment(num_ops=3, probability=1.0))
    names = list(OPERATIONS)
    for place in range(3):
        assert_uniform(np.bincount([names.index(view[place].name) for view in views], minlength=len(names)))
        assert_uniform(np.bincount([view[place].strength.sign > 0 for view in views], minlength=2))
        filters = [BOTH.index(view[place].strength.canvas.resampling) for view in views]
        assert_uniform(np.bincount(filters, minlength=2))


def test_each_operation_is_left_out_with_its_probability() -> None:
    counts = collections.Counter(len(view) for view in drawn(RandAugment(num_ops=2, probability=0.5)))
    # Binomial: 1/4, 1/2, 1/4 of 4000; 5 standard deviations are 137 and 158.
    assert abs(counts[0] - 1000) < 137
    assert abs(counts[1] - 2000) < 158
    assert abs(counts[2] - 1000) < 137


def test_strength_is_normal_around_the_magnitude() -> None:
    views = drawn(RandAugment(num_ops=1, probability=1.0, magnitude=5, magnitude_std=0.5))
    magnitudes = [10 * view[0].strength.level for view in views]
    assert statistics.fmean(magnitudes) == pytest.approx(5, abs=5 * 0.5 / NUM_VIEWS**0.5)
    assert statistics.stdev(magnitudes) == pytest.approx(0.5, abs=5 * 0.5 / (2 * NUM_VIEWS) ** 0.5)


def test_strength_stays_within_its_range() -> None:
    levels = [view[0].strength.level for view in drawn(RandAugment(num_ops=1, probability=1.0, magnitude_std=20.0))]
    assert min(levels) == 0
    assert max(levels) == 1


def test_strength_without_deviation_is_the_magnitude() -> None:
    views = drawn(RandAugment(magnitude=7, magnitude_std=0.0), 50)
    assert {operation.strength.level for view in views for operation in view} == {0.7}


def test_a_view_is_timms_operations_in_the_drawn_order(monkeypatch: pytest.MonkeyPatch) -> None:
    picture, settings = smooth(1, 40, 30), RandAugment(num_ops=3, magnitude=6, fill=(9, 8, 7))
    rows = uniform_rows(combine(seed_key(4), np.arange(40)), settings.num_draws).tolist()
    for row in rows:
        expected: Image.Image = picture
        for name, (level, sign, canvas) in settings.draw(row, BOTH):
            monkeypatch.setattr(timm_auto_augment, "_randomly_negate", lambda value, sign=sign: sign * value)
            hparams = {"img_mean": (9, 8, 7), "interpolation": canvas.resampling}
            # level * 10 / 10 is level again: timm divides what it gets by 10.
            expected = timm_auto_augment.AugmentOp(TIMM_NAMES[name], 1.0, level * 10, hparams)(expected)
        assert settings.apply(picture, row, BOTH).tobytes() == expected.tobytes()


def test_the_default_is_the_recipes_standard() -> None:
    reference = timm_auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1")
    settings = RandAugment()
    assert reference.num_layers == settings.num_ops
    assert [operation.name for operation in reference.ops] == [TIMM_NAMES[name] for name in OPERATIONS]
    for operation in reference.ops:
        assert operation.prob == settings.probability
        assert operation.magnitude == settings.magnitude
        assert operation.magnitude_std == settings.magnitude_std
