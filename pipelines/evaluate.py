"""Stage evaluate: everything a person is told about a network, measured on its exported files."""

from __future__ import annotations

import csv
import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from compress.benchmark import BenchmarkSettings, Timing, benchmark
from compress.data.prepared import PreparedData, PreparedSplit, load_prepared
from compress.evaluate import Scores, agreement, evaluate
from compress.files import read_json, write_json
from compress.runtime import load_predictor
from compress.settings import PositiveInt, Settings
from compress.types import ImageArray, LabelArray, LogitArray
from pipelines.absence import is_absent
from pipelines.layout import TEACHER, Layout
from pipelines.params import load_params
from pipelines.samples import sample_images
from pipelines.tracking import track

Timings = dict[int, Timing]


class EvaluateSettings(Settings):
    """How exported files are measured."""

    batch_size: PositiveInt = 256
    """Images per call while accuracy is measured."""
    threads: PositiveInt | None = None
    """CPU threads while accuracy is measured; by default all cores. Latency has its own, benchmark.threads."""
    benchmark: BenchmarkSettings = BenchmarkSettings()


class EvaluateParams(Settings):
    """Sections that this stage reads."""

    evaluate: EvaluateSettings = EvaluateSettings()


class SeedResult(NamedTuple):
    """Scores of one seed's file."""

    seed: int
    validation: Scores
    test: Scores
    test_logits: LogitArray


class Reference(NamedTuple):
    """What a student is compared with: the teacher's accuracy and answers."""

    metrics: dict[str, float]
    test_logits: LogitArray


def run(root: Path, name: str) -> None:
    """Score every seed's file on validation and test, time the shipped one beside the teacher's, record it all."""
    layout = Layout(root)
    settings = load_params(EvaluateParams, layout.params).evaluate
    has_teacher = not is_absent(layout.exported(TEACHER))
    if name == TEACHER and not has_teacher:
        _leave_absence(layout.results(TEACHER))
        return
    data = load_prepared(layout.prepared)
    export = read_json(layout.exported(name) / "export.json", made_by="export")
    results = [_score(layout.exported(name) / file["file"], file["seed"], data, settings) for file in export["files"]]
    shipped = next(result for result in results if result.seed == export["shipped"]["seed"])
    timings = _time(layout, sorted({name, TEACHER} if has_teacher else {name}), data, settings.benchmark)
    metrics = {
        **_accuracy(shipped, results),
        **(_beside_teacher(shipped, _teacher(layout)) if has_teacher and name != TEACHER else {}),
        **_speed(timings[name]),
        **(_speedup(timings[name], timings[TEACHER]) if has_teacher else {}),
        "size_mb": export["shipped"]["size_bytes"] / 1e6,
        "parameters_m": export["shipped"]["num_parameters"] / 1e6,
        "mflops": export["shipped"]["flops"] / 1e6,
    }
    folder = layout.results(name)
    np.save(folder / "logits.npy", shipped.test_logits)
    names, labels = data.manifest.classes, data.split("test").labels
    answers = shipped.test_logits.argmax(axis=1)
    _write_confusion(
        folder / "confusion.csv", [(names[label], names[answer]) for label, answer in zip(labels, answers, strict=True)]
    )
    write_json(folder / "evaluation.json", {"metrics": metrics})
    write_json(folder / "details.json", _details(data, results, timings, settings))
    _track(layout, name, export["shipped"], metrics, example=sample_images(data.split("validation"), 1))
    print(
        f"{name}: test accuracy {metrics['accuracy_top1']:.2%} on {shipped.test.num_images} images, "
        f"{metrics['latency_ms_p50']:.3f} ms per image"
        + (f", {metrics['speedup']:.1f}x the teacher's speed" if has_teacher else "")
    )


def _leave_absence(folder: Path) -> None:
    """What DVC expects of this stage, with nothing in it."""
    np.save(folder / "logits.npy", np.zeros((0, 0), dtype=np.float32))
    _write_confusion(folder / "confusion.csv", ())
    write_json(folder / "evaluation.json", {"metrics": {}})
    write_json(folder / "details.json", {})


def _track(
    layout: Layout, name: str, shipped: dict[str, Any], metrics: dict[str, float], *, example: ImageArray
) -> None:
    """Publish the file with what was measured on it: never one without the other."""
    run_id = read_json(layout.run(name), made_by="training")["run_id"]
    with track(layout.root, name=name, stage="evaluate", run_id=run_id) as tracked:
        tracked.log_onnx(layout.exported(name) / shipped["file"], name=name, step=shipped["epoch"], example=example)
        tracked.log_metrics(metrics)


def _score(path: Path, seed: int, data: PreparedData, settings: EvaluateSettings) -> SeedResult:
    predict = load_predictor(path, threads=settings.threads or os.cpu_count() or 1)
    num_classes = len(data.manifest.classes)
    validation, test = (
        evaluate(predict, _arrays(data.split(split), settings.batch_size), num_classes=num_classes)
        for split in ("validation", "test")
    )
    return SeedResult(seed, validation.scores, test.scores, test.logits)


def _arrays(split: PreparedSplit, batch_size: int) -> Iterator[tuple[ImageArray, LabelArray]]:
    for images, labels in split.batches(batch_size):
        yield images.numpy(), labels.numpy()


def _time(layout: Layout, names: Sequence[str], data: PreparedData, settings: BenchmarkSettings) -> dict[str, Timings]:
    """Latencies of the shipped files, taken in turns in this one process."""
    predictors = {}
    for name in names:
        shipped = read_json(layout.exported(name) / "export.json", made_by="export")["shipped"]
        predictors[name] = load_predictor(layout.exported(name) / shipped["file"], threads=settings.threads)
    images = sample_images(data.split("validation"), max(settings.batch_sizes))
    return benchmark(predictors, images, settings=settings)


def _teacher(layout: Layout) -> Reference:
    folder = layout.results(TEACHER)
    metrics = read_json(folder / "evaluation.json", made_by="evaluate")["metrics"]
    return Reference(metrics, np.load(folder / "logits.npy", allow_pickle=False))


def _accuracy(shipped: SeedResult, results: Sequence[SeedResult]) -> dict[str, float]:
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


def _beside_teacher(shipped: SeedResult, teacher: Reference) -> dict[str, float]:
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


def _speedup(student: Timings, teacher: Timings) -> dict[str, float]:
    """How many times faster than the teacher; both were measured in one run."""
    small, large = min(student), max(student)
    return {
        "speedup": teacher[small].latency_ms_p50 / student[small].latency_ms_p50,
        f"speedup_batch{large}": teacher[large].latency_ms_p50 / student[large].latency_ms_p50,
    }


def _details(
    data: PreparedData, results: Sequence[SeedResult], timings: dict[str, Timings], settings: EvaluateSettings
) -> dict[str, Any]:
    """Everything else worth keeping, with the machine that the latencies belong to."""
    return {
        "classes": list(data.manifest.classes),
        "data_fingerprint": data.manifest.fingerprint,
        "seeds": [
            {"seed": result.seed, "validation": _summary(result.validation), "test": _summary(result.test)}
            for result in results
        ],
        "timings": {
            name: [timing.model_dump(mode="json") for timing in by_batch.values()] for name, by_batch in timings.items()
        },
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": settings.benchmark.threads,
            "runtime": f"onnxruntime {onnxruntime.__version__}",
        },
    }


def _summary(scores: Scores) -> dict[str, Any]:
    return scores.model_dump(mode="json", exclude={"confusion"})


def _processor() -> str:
    """The CPU's name; /proc/cpuinfo knows it better than the standard library does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _write_confusion(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    """One line per test image, as DVC's confusion template wants it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("actual", "predicted"))
        writer.writerows(rows)
