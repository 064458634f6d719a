"""Random numbers as a pure function of counters: the same (seed, image, view) gives the same number everywhere.

The mixing function is splitmix64's (G. Steele, D. Lea, C. Flood, Fast Splittable Pseudorandom Number Generators,
OOPSLA 2014); numpy's generators need a new state for each image, which costs a hundred times as much.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from jaxtyping import Float64, Integer, UInt16, UInt64

_GOLDEN = np.array(0x9E3779B97F4A7C15, dtype=np.uint64)
_MASK = (1 << 64) - 1
_NORMAL = NormalDist()
_SMALLEST_DRAW = 2.0**-54  # half a step of `uniforms`: where zero counts as when infinity is no answer

Keys = UInt64[np.ndarray, "..."]
Counters = Integer[np.ndarray, "..."]
Uniforms = Float64[np.ndarray, "..."]


def mix(values: Keys) -> Keys:
    """A fixed permutation of the 64-bit integers in which every bit depends on every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def combine(keys: Keys, counters: Counters) -> Keys:
    """New keys from keys and counters that broadcast against each other; the order of combining matters."""
    return mix(keys + (counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def seed_key(seed: int) -> Keys:
    """The key that a seed starts from, shape (1,); seeds count modulo 2**64."""
    return mix(np.array([seed & _MASK], dtype=np.uint64) ^ _GOLDEN)


def uniforms(keys: Keys) -> Uniforms:
    """Numbers in [0, 1) from the upper 53 bits of keys."""
    return (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniform_rows(keys: UInt64[np.ndarray, " B"], num_draws: int) -> Float64[np.ndarray, "B draws"]:
    """Numbers in [0, 1) for each key, of the counters 0..num_draws - 1."""
    return uniforms(combine(keys[:, None], np.arange(num_draws)))


def standard_normal(draw: float) -> float:
    """The number that a normal distribution of mean 0 and deviation 1 exceeds with probability 1 - draw."""
    return _NORMAL.inv_cdf(max(draw, _SMALLEST_DRAW))


def random_shorts(key: UInt64[np.ndarray, " 1"], count: int) -> UInt16[np.ndarray, " count"]:
    """Numbers 0..65535, four from every hashed counter; lowest bits first on every machine."""
    numbers = combine(key, np.arange(-(-count // 4)))
    return numbers.astype("<u8").view("<u2")[:count].astype(np.uint16, copy=False)
