"""Timings against a clock that the test turns, and once against the real one."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from compress.benchmark import BenchmarkSettings, Timing, benchmark
from compress.runtime import load_predictor
from tests.compress.onnx_files import random_images, write_colour_model


class Clock:
    """Seconds that pass only while a predictor answers, and who answered when."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[str, int]] = []

    def __call__(self) -> float:
        return self.now

    def predictor(self, name: str, *seconds: float):
        """Takes each of the given times in turn, again and again."""
        turns = [0]

        def predict(images: np.ndarray) -> np.ndarray:
            self.calls.append((name, len(images)))
            self.now += seconds[turns[0] % len(seconds)]
            turns[0] += 1
            return np.zeros((len(images), 2), dtype=np.float32)

        return predict


def settings(**changes: object) -> BenchmarkSettings:
    return BenchmarkSettings.model_validate(
        {"batch_sizes": (1,), "num_warmup": 0, "min_rounds": 4, "min_seconds": 0.0, **changes}
    )


def test_predictors_take_turns_in_an_order_that_turns_round() -> None:
    clock = Clock()
    predictors = {name: clock.predictor(name, 1.0) for name in ("a", "b", "c")}
    benchmark(predictors, random_images(1), settings=settings(), clock=clock)
    assert "".join(name for name, _ in clock.calls) == "abccbaabccba"


def test_percentiles_are_over_all_timed_calls() -> None:
    clock = Clock()
    predictors = {"a": clock.predictor("a", *(n / 1000 for n in range(1, 102)))}
    timing = benchmark(predictors, random_images(1), settings=settings(min_rounds=101), clock=clock)["a"][1]
    assert timing.latency_ms_p50 == pytest.approx(51.0)
    assert timing.latency_ms_p95 == pytest.approx(96.0)
    assert timing.images_per_second == pytest.approx(1 / 0.051)
    assert timing.num_calls == 101


def test_warm_up_calls_are_not_timed() -> None:
    clock = Clock()
    slow_start = clock.predictor("a", 9.0, 9.0, *[0.5] * 4)
    timing = benchmark({"a": slow_start}, random_images(1), settings=settings(num_warmup=2), clock=clock)["a"][1]
    assert timing.latency_ms_p95 == pytest.approx(500.0)


def test_every_batch_size_is_timed_and_throughput_counts_images() -> None:
    clock = Clock()
    timings = benchmark(
        {"a": clock.predictor("a", 2.0)}, random_images(5), settings=settings(batch_sizes=(1, 32)), clock=clock
    )
    assert list(timings["a"]) == [1, 32]
    assert timings["a"][32].images_per_second == 16.0
    assert {size for _, size in clock.calls} == {1, 32}, "five images fill a batch of 32 by repeating"


def test_fast_predictors_are_called_until_the_time_is_used() -> None:
    clock = Clock()
    predictors = {"a": clock.predictor("a", 0.25), "b": clock.predictor("b", 0.25)}
    timings = benchmark(predictors, random_images(1), settings=settings(min_seconds=10.0), clock=clock)
    assert timings["a"][1].num_calls == timings["b"][1].num_calls == 20


def test_slow_predictors_are_called_no_more_than_necessary() -> None:
    clock = Clock()
    timings = benchmark(
        {"a": clock.predictor("a", 60.0)}, random_images(1), settings=settings(min_seconds=1.0), clock=clock
    )
    assert timings["a"][1].num_calls == 4


def test_real_sessions_are_timed_within_the_default_time(tmp_path: Path) -> None:
    predictor = load_predictor(write_colour_model(tmp_path / "model.onnx"))
    began = time.perf_counter()
    timings = benchmark({"a": predictor, "b": predictor}, random_images(4), settings=BenchmarkSettings())
    took = time.perf_counter() - began
    assert took < 6, "1.5 s by default; the rest is patience with a busy machine"
    for timing in (*timings["a"].values(), *timings["b"].values()):
        assert 0 < timing.latency_ms_p50 <= timing.latency_ms_p95
        assert timing.num_calls >= 10
        assert Timing.model_validate_json(timing.model_dump_json()) == timing


def test_nothing_to_time_is_a_wrong_call() -> None:
    with pytest.raises(ValueError, match="0 predictors, 1 images"):
        benchmark({}, random_images(1), settings=settings())
    with pytest.raises(ValueError, match="1 predictors, 0 images"):
        benchmark({"a": Clock().predictor("a", 1.0)}, random_images(0), settings=settings())


@pytest.mark.parametrize("broken", [{"batch_sizes": ()}, {"batch_sizes": (0,)}, {"min_rounds": 0}, {"rounds": 5}])
def test_settings_that_measure_nothing_are_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        settings(**broken)
