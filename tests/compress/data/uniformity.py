"""Whether counts could come from equal probabilities."""

from __future__ import annotations

import numpy as np


def assert_uniform(counts: np.ndarray) -> None:
    """Chi-square: mean = degrees of freedom, sd = sqrt(2 * that); 5 sd is a false alarm in 10**6."""
    expected, freedom = counts.sum() / len(counts), len(counts) - 1
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)
