"""How fast predictors answer, measured side by side.

All predictors of a comparison take turns in one process, in an order that turns round every time, so that a machine
that slows down or gets busy slows all of them alike: the ratios hold even where the milliseconds do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Annotated

import numpy as np
from pydantic import Field

from compress.settings import NonNegativeFloat, NonNegativeInt, PositiveInt, Settings
from compress.types import ImageArray, Predictor


class BenchmarkSettings(Settings):
    """How latency and throughput are measured."""

    batch_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 32)
    """Images per call; the first is the one that latency constraints speak of."""
    threads: PositiveInt = 1
    """Threads inside one call; the files are loaded with this number. One repeats best."""
    num_warmup: NonNegativeInt = 3
    """Calls of each predictor before the clock runs, per batch size."""
    min_rounds: PositiveInt = 10
    """Timed calls of each predictor per batch size, at least, however slow they are."""
    min_seconds: NonNegativeFloat = 0.75
    """Rounds go on for this long per batch size, all predictors together."""


class Timing(Settings):
    """What was measured of one predictor at one batch size."""

    batch_size: PositiveInt
    latency_ms_p50: NonNegativeFloat
    """Median time of a call, for the whole batch."""
    latency_ms_p95: NonNegativeFloat
    """95 of 100 calls took at most this long."""
    images_per_second: NonNegativeFloat
    """Batch size over the median time."""
    num_calls: PositiveInt


def benchmark(
    predictors: Mapping[str, Predictor],
    images: ImageArray,
    *,
    settings: BenchmarkSettings,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[int, Timing]]:
    """Time every predictor at every batch size: name -> batch size -> timing.

    Batches are filled from `images`, which repeat where they are fewer. `clock` tells seconds.
    """
    if not predictors or len(images) == 0:
        raise ValueError(f"nothing to time: {len(predictors)} predictors, {len(images)} images")
    timings: dict[str, dict[int, Timing]] = {name: {} for name in predictors}
    for batch_size in settings.batch_sizes:
        batch = np.ascontiguousarray(images[np.arange(batch_size) % len(images)])
        for name, seconds in _take_turns(predictors, batch, settings=settings, clock=clock).items():
            timings[name][batch_size] = _timing(batch_size, np.array(seconds))
    return timings


def _take_turns(
    predictors: Mapping[str, Predictor], batch: ImageArray, *, settings: BenchmarkSettings, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of every timed call, by predictor."""
    for predict in predictors.values():
        for _ in range(settings.num_warmup):
            predict(batch)
    seconds: dict[str, list[float]] = {name: [] for name in predictors}
    order = list(predictors.items())
    num_rounds, began = 0, clock()
    while num_rounds < settings.min_rounds or clock() - began < settings.min_seconds:
        for name, predict in order:
            start = clock()
            predict(batch)
            seconds[name].append(clock() - start)
        order.reverse()
        num_rounds += 1
    return seconds


def _timing(batch_size: int, seconds: np.ndarray) -> Timing:
    median, high = (float(value) for value in np.percentile(seconds, [50, 95]))
    return Timing(
        batch_size=batch_size,
        latency_ms_p50=median * 1000,
        latency_ms_p95=high * 1000,
        images_per_second=batch_size / median,
        num_calls=len(seconds),
    )
