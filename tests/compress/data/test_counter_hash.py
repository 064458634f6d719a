"""Random numbers that depend on their counters only."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from compress.data.counter_hash import combine, random_shorts, seed_key, standard_normal, uniform_rows, uniforms
from tests.compress.data.uniformity import assert_uniform


def test_hash_is_splitmix64() -> None:
    # The first outputs of the reference implementation (S. Vigna, splitmix64.c) for the state 1234567.
    state = np.array([1234567], dtype=np.uint64)
    outputs = combine(state, np.arange(3))
    assert outputs.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniforms_fill_the_unit_interval() -> None:
    numbers = uniforms(combine(seed_key(0), np.arange(20_000)))
    assert 0 <= numbers.min() < 0.001
    assert 0.999 < numbers.max() < 1
    assert_uniform(np.histogram(numbers, bins=20, range=(0, 1))[0])


def test_a_row_of_draws_belongs_to_its_key_alone() -> None:
    keys = combine(seed_key(0), np.arange(5))
    together = uniform_rows(keys, 7)
    assert together.shape == (5, 7)
    assert np.array_equal(uniform_rows(keys[3:4], 7)[0], together[3])
    assert np.array_equal(uniform_rows(keys, 3), together[:, :3])
    assert len(np.unique(together)) == 35


def test_normal_numbers_have_the_moments_and_quantiles_of_the_normal_distribution() -> None:
    numbers = [standard_normal(draw) for draw in uniforms(combine(seed_key(1), np.arange(10_000))).tolist()]
    # 5 standard errors: 1 / sqrt(n) of the mean, 1 / sqrt(2 n) of the deviation.
    assert abs(statistics.fmean(numbers)) < 0.05
    assert abs(statistics.stdev(numbers) - 1) < 0.036
    assert standard_normal(0.5) == 0
    assert standard_normal(0.975) == pytest.approx(1.959964, abs=1e-6)


@pytest.mark.parametrize("draw", [0.0, 2.0**-53, 1 - 2.0**-53])
def test_the_ends_of_the_unit_interval_give_finite_normal_numbers(draw: float) -> None:
    assert math.isfinite(standard_normal(draw))
    assert 8 < abs(standard_normal(draw)) < 9


def test_shorts_are_the_quarters_of_the_hashes_lowest_first() -> None:
    key = seed_key(7)
    hashes = combine(key, np.arange(3)).tolist()
    expected = [(number >> shift) & 0xFFFF for number in hashes for shift in (0, 16, 32, 48)]
    assert random_shorts(key, 12).tolist() == expected
    assert random_shorts(key, 10).tolist() == expected[:10]
    assert random_shorts(key, 0).tolist() == []


def test_shorts_are_uniform() -> None:
    assert_uniform(np.bincount(random_shorts(seed_key(2), 40_000) >> 11, minlength=32))
