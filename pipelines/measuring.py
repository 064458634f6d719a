"""What is measured of an exported file, under the names that tables, charts and the tracker use."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from compress.benchmark import BenchmarkSettings, Timing
from compress.data.prepared import PreparedData, PreparedSplit
from compress.evaluate import Evaluation, Scores, agreement, evaluate
from compress.runtime import OnnxPredictor, load_predictor
from compress.settings import PositiveInt, Settings
from compress.types import ImageArray, LabelArray, LogitArray, Predictor

Timings = dict[int, Timing]
"""Of one file, by batch size."""
Split = Literal["validation", "test"]


class EvaluateSettings(Settings):
    """How exported files are measured."""

    batch_size: PositiveInt = 256
    """Images per call while accuracy is measured."""
    threads: PositiveInt | None = None
    """CPU threads while accuracy is measured; by default all cores. Latency has its own, benchmark.threads."""
    benchmark: BenchmarkSettings = BenchmarkSettings()


class FileScores(NamedTuple):
    """Scores of one file."""

    seed: int
    validation: Scores
    test: Scores
    test_logits: LogitArray


class Reference(NamedTuple):
    """What a student is compared with: the teacher's accuracy and answers, and its latencies in the same run."""

    metrics: dict[str, float]
    test_logits: LogitArray
    timings: Timings


def load_for_accuracy(path: Path, settings: EvaluateSettings) -> OnnxPredictor:
    """A file, with the threads that accuracy is measured with."""
    return load_predictor(path, threads=settings.threads or os.cpu_count() or 1)


def answers_of(predict: Predictor, data: PreparedData, split: Split, settings: EvaluateSettings) -> Evaluation:
    """Scores and logits of a file on one split."""
    batches = _arrays(data.split(split), settings.batch_size)
    return evaluate(predict, batches, num_classes=len(data.manifest.classes))


def _arrays(split: PreparedSplit, batch_size: int) -> Iterator[tuple[ImageArray, LabelArray]]:
    for images, labels in split.batches(batch_size):
        yield images.numpy(), labels.numpy()


def metrics_of(
    file: dict[str, Any],
    scores: FileScores,
    timings: Timings,
    *,
    all_seeds: Sequence[FileScores],
    teacher: Reference | None,
) -> dict[str, float]:
    """All numbers of a file that export.json describes; mean and deviation are those over all seeds' files."""
    return {
        **_accuracy(scores, all_seeds),
        **(_beside_teacher(scores, teacher) if teacher else {}),
        **_speed(timings),
        **(speedup(timings, teacher.timings) if teacher else {}),
        "size_mb": file["size_bytes"] / 1e6,
        "parameters_m": file["num_parameters"] / 1e6,
        "mflops": file["flops"] / 1e6,
    }


def _accuracy(shipped: FileScores, results: Sequence[FileScores]) -> dict[str, float]:
    """Scores of the shipped file, and the mean and sample standard deviation over all seeds' files."""
    of_seeds = [result.test.accuracy_top1 for result in results]
    metrics = {
        "accuracy_top1": shipped.test.accuracy_top1,
        "accuracy_top1_mean": statistics.fmean(of_seeds),
        "accuracy_top1_std": statistics.stdev(of_seeds) if len(of_seeds) > 1 else 0.0,
        "accuracy_top1_validation": shipped.validation.accuracy_top1,
        "negative_log_likelihood": shipped.test.negative_log_likelihood,
        "expected_calibration_error": shipped.test.expected_calibration_error,
    }
    if shipped.test.accuracy_top5 is not None:
        metrics["accuracy_top5"] = shipped.test.accuracy_top5
    return metrics


def _beside_teacher(shipped: FileScores, teacher: Reference) -> dict[str, float]:
    """Gaps are the teacher's accuracy minus the student's: positive where the student is worse."""
    return {
        "gap_to_teacher": teacher.metrics["accuracy_top1"] - shipped.test.accuracy_top1,
        "gap_to_teacher_validation": teacher.metrics["accuracy_top1_validation"] - shipped.validation.accuracy_top1,
        "agreement_with_teacher": agreement(shipped.test_logits, teacher.test_logits),
    }


def _speed(student: Timings) -> dict[str, float]:
    """Latency at the smallest batch, throughput at the largest."""
    small, large = min(student), max(student)
    return {
        "latency_ms_p50": student[small].latency_ms_p50,
        "latency_ms_p95": student[small].latency_ms_p95,
        f"latency_ms_p50_batch{large}": student[large].latency_ms_p50,
        f"latency_ms_p95_batch{large}": student[large].latency_ms_p95,
        "images_per_second": student[large].images_per_second,
    }


def speedup(student: Timings, teacher: Timings) -> dict[str, float]:
    """How many times faster than the teacher; both were measured in one run."""
    small, large = min(student), max(student)
    return {
        "speedup": teacher[small].latency_ms_p50 / student[small].latency_ms_p50,
        f"speedup_batch{large}": teacher[large].latency_ms_p50 / student[large].latency_ms_p50,
    }
