"""Forms that the search kept, measured once more: what was promised must hold again before anything is published.

The search chose them, so its numbers are a little too good: of many candidates close to a bound some pass by luck.
A form that breaks its budget now is out, and its accuracy on test is not even looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from compress.benchmark import BenchmarkSettings, benchmark
from compress.data.prepared import PreparedData
from compress.evaluate import Scores, agreement
from compress.runtime import load_predictor
from pipelines.measuring import (
    EvaluateSettings,
    FileScores,
    Reference,
    Timings,
    answers_of,
    load_for_accuracy,
    metrics_of,
)
from pipelines.samples import sample_images


class MeasuredForm(NamedTuple):
    """A form and what became of it."""

    file: dict[str, Any]
    """What export.json says about it."""
    speedup: float
    """Over float32, at the threads and the batch size of the target."""
    validation: Scores
    drop: float
    """Top-1 of float32 on validation minus the form's."""
    broken: str
    """What was promised and did not hold; empty for a form that may be shipped."""
    test: Scores | None
    metrics: dict[str, float]
    """Empty for a form that may not be shipped."""

    @property
    def form(self) -> str:
        """Its label."""
        return self.file["form"]

    def details(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {
            "is_kept": not self.broken,
            "reason": self.broken or self.file["reason"],
            "speedup_over_float32": self.speedup,
            "drop_from_float32_validation": self.drop,
            "saturation": self.file["measured"]["saturation"],
            "validation": self.validation.model_dump(mode="json", exclude={"confusion"}),
            "test": None if self.test is None else self.test.model_dump(mode="json", exclude={"confusion"}),
        }


class Float32(NamedTuple):
    """The file that forms were made of."""

    path: Path
    scores: FileScores
    timings: Timings


def measure_forms(
    files: Sequence[dict[str, Any]],
    timings: dict[str, Timings],
    *,
    float32: Float32,
    teacher: Reference | None,
    data: PreparedData,
    settings: EvaluateSettings,
) -> list[MeasuredForm]:
    """Hold every form to its budget again, and score on test those that keep to it.

    `timings` are by form, taken in turns with float32's.
    """
    if not files:
        return []
    speedups = _speedups(files, timings, float32=float32, data=data, settings=settings.benchmark)
    measured: list[MeasuredForm] = []
    for file in files:
        form = file["form"]
        predict = load_for_accuracy(_path(file, float32), settings)
        validation = answers_of(predict, data, "validation", settings).scores
        drop = float32.scores.validation.accuracy_top1 - validation.accuracy_top1
        broken = _broken(file["budget"], speedup=speedups[form], drop=drop)
        test, metrics = None, {}
        if not broken:
            answers = answers_of(predict, data, "test", settings)
            test = answers.scores
            scores = FileScores(file["seed"], validation, test, answers.logits)
            metrics = {
                **metrics_of(file, scores, timings[form], all_seeds=[scores], teacher=teacher),
                **_beside_float32(scores, float32.scores, drop=drop, speedup=speedups[form]),
            }
        measured.append(MeasuredForm(file, speedups[form], validation, drop, broken, test, metrics))
    return measured


def _path(file: dict[str, Any], float32: Float32) -> Path:
    """Forms lie beside the file they were made of."""
    return float32.path.with_name(Path(file["file"]).name)


def _beside_float32(form: FileScores, float32: FileScores, *, drop: float, speedup: float) -> dict[str, float]:
    """Drops are float32's accuracy minus the form's: positive where the form is worse."""
    return {
        "drop_from_float32": float32.test.accuracy_top1 - form.test.accuracy_top1,
        "drop_from_float32_validation": drop,
        "agreement_with_float32": agreement(form.test_logits, float32.test_logits),
        "speedup_over_float32": speedup,
    }


def _speedups(
    files: Sequence[dict[str, Any]],
    timings: dict[str, Timings],
    *,
    float32: Float32,
    data: PreparedData,
    settings: BenchmarkSettings,
) -> dict[str, float]:
    """How many times as fast as float32 each form is on the target; timed anew if the target's settings differ."""
    target = files[0]["budget"]["target"]
    threads, batch_size = target["threads"], target["batch_size"]
    if threads == settings.threads and batch_size in settings.batch_sizes:
        at_target = {**{file["form"]: timings[file["form"]] for file in files}, "": float32.timings}
    else:
        paths = {"": float32.path, **{file["form"]: _path(file, float32) for file in files}}
        predictors = {form: load_predictor(path, threads=threads) for form, path in paths.items()}
        again = settings.model_copy(update={"batch_sizes": (batch_size,), "threads": threads})
        at_target = benchmark(predictors, sample_images(data.split("validation"), batch_size), settings=again)
    slow = at_target.pop("")[batch_size].latency_ms_p50
    return {form: slow / by_batch[batch_size].latency_ms_p50 for form, by_batch in at_target.items()}


def _broken(budget: dict[str, Any], *, speedup: float, drop: float) -> str:
    """What of the budget does not hold any more, in words."""
    broken: list[str] = []
    if speedup < budget["min_speedup"]:
        broken.append(f"{speedup:.4g} times as fast when measured again, {budget['min_speedup']:.4g} needed")
    # Where the target lacks VNNI, what this machine answers says nothing; the search has simulated the target.
    if budget["target"]["has_vnni"] is not False and drop > budget["max_drop"]:
        broken.append(f"loses {drop:.4f} of validation accuracy on all images, {budget['max_drop']:.4g} allowed")
    return f"no gain, keep float32: {'; '.join(broken)}" if broken else ""
