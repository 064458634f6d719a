"""Where to cut the range of a tensor, seen as a histogram that is symmetric around zero."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64

NUM_LEVELS = 128
"""Levels of one sign in 8 bits."""
ENTROPY_STEP = 32
"""Bins by which the cut moves: a hundredth of the range."""

Counts = Int64[np.ndarray, " bins"]
Edges = Float64[np.ndarray, " bins+1"]
Sizes = Float64[np.ndarray, " sizes"]


def percentile_range(counts: Counts, edges: Edges, percentile: float) -> tuple[float, float]:
    """The bins that are left when (100 - percentile) / 2 per cent of the values are cut off at either end."""
    shares = np.cumsum(counts) / counts.sum()
    cut = (100.0 - percentile) / 200.0
    lowest = int(np.searchsorted(shares, cut, side="right"))
    highest = int(np.searchsorted(shares, 1.0 - cut, side="left"))
    return float(edges[min(lowest, highest)]), float(edges[highest + 1])


def entropy_range(counts: Counts, edges: Edges) -> tuple[float, float]:
    """The cut whose distribution of sizes, said in the levels of 8 bits, diverges least from the one it cuts.

    The procedure of TensorRT's calibration (Migacz, 8-bit inference with TensorRT, GTC 2017), as NVIDIA's
    pytorch-quantization has it: sizes regardless of sign, and the bin at zero, where ReLU piles up exact zeros,
    counted like its neighbour. A tensor without negative values has all 256 levels on one side.
    onnxruntime's own version starts with 128 bins for 128 levels and so has a single cut to choose from.
    """
    middle = len(counts) // 2
    has_negative = bool(counts[:middle].any())
    sizes = (counts[middle:] + counts[:middle][::-1]).astype(np.float64)
    sizes[0] = sizes[1]
    num_levels = NUM_LEVELS if has_negative else 2 * NUM_LEVELS
    widths = [*range(num_levels, middle, ENTROPY_STEP), middle]
    divergences = [_divergence(sizes, width, num_levels) for width in widths]
    # Of equal ones the widest: it clips least.
    best = max(zip(widths, divergences, strict=True), key=lambda each: (-each[1], each[0]))[0]
    return float(edges[middle - best]), float(edges[middle + best])


def _divergence(sizes: Sizes, width: int, num_levels: int) -> float:
    """Kullback-Leibler divergence, in nats, of the first bins said in levels from the same with the rest clipped in."""
    inside = sizes[:width]
    clipped = inside.copy()
    clipped[-1] += sizes[width:].sum()
    level = np.arange(width) * num_levels // width
    is_used = inside > 0
    if not is_used.any() or (clipped[-1] > 0 and not is_used[-1]):
        return float("inf")  # values that would be clipped to where there are none
    num_used = np.bincount(level, weights=is_used, minlength=num_levels)
    sums = np.bincount(level, weights=inside, minlength=num_levels)
    spread = np.divide(sums, num_used, out=np.zeros(num_levels), where=num_used > 0)[level]
    p = clipped[is_used] / clipped.sum()
    q = spread[is_used] / spread[is_used].sum()
    return float((p * np.log(p / q)).sum())
