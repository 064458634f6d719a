"""Stage evaluate: everything a person is told about a network, measured on its exported files."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from compress.benchmark import BenchmarkSettings, benchmark
from compress.data.prepared import PreparedData, load_prepared
from compress.evaluate import Scores
from compress.files import check_files, check_sha256, read_json, replaced_whole, write_json, write_record
from compress.fingerprint import file_sha256
from compress.runtime import load_predictor
from compress.select import label
from compress.settings import Settings
from compress.types import ImageArray
from pipelines.absence import is_absent
from pipelines.kept_forms import Float32, MeasuredForm, measure_forms
from pipelines.layout import TEACHER, Layout
from pipelines.measuring import (
    EvaluateSettings,
    FileScores,
    Reference,
    Timings,
    answers_of,
    load_for_accuracy,
    metrics_of,
    speedup,
)
from pipelines.origin import cpu_name
from pipelines.params import load_params
from pipelines.samples import sample_images
from pipelines.tracking import track


class EvaluateParams(Settings):
    """Sections that this stage reads."""

    evaluate: EvaluateSettings = EvaluateSettings()


def run(root: Path, name: str) -> None:
    """Score every seed's file on validation and test, time the shipped one beside the teacher's, record it all.

    Forms of the shipped file that its export kept are measured beside it.
    """
    layout = Layout(root)
    settings = load_params(EvaluateParams, layout.params).evaluate
    has_teacher = not is_absent(layout.exported(TEACHER))
    if name == TEACHER and not has_teacher:
        _leave_absence(layout.results(TEACHER))
        return
    data = load_prepared(layout.prepared)
    export = read_json(layout.exported(name) / "export.json", made_by="export")
    for file in (*export["files"], *export["forms"]):
        check_sha256(layout.exported(name) / file["file"], file["sha256"], made_by="export")
    results = [_score(layout.exported(name) / file["file"], file["seed"], data, settings) for file in export["files"]]
    shipped = next(result for result in results if result.seed == export["shipped"]["seed"])
    timings = _time(_shipped_files(layout, name, export, has_teacher=has_teacher), data, settings.benchmark)
    teacher = _teacher(layout, timings[TEACHER]) if has_teacher and name != TEACHER else None
    metrics = metrics_of(export["shipped"], shipped, timings[name], all_seeds=results, teacher=teacher)
    if name == TEACHER:
        metrics |= speedup(timings[name], timings[name])
    forms = measure_forms(
        export["forms"],
        {file["form"]: timings[label(name, file["form"])] for file in export["forms"]},
        float32=Float32(layout.exported(name) / export["shipped"]["file"], shipped, timings[name]),
        teacher=teacher,
        data=data,
        settings=settings,
    )
    _write(layout.results(name), data, shipped, metrics=metrics, forms=forms)
    _write_details(layout.results(name), _details(data, results, timings, forms, settings))
    _track(layout, name, export["shipped"], metrics, forms, example=sample_images(data.split("validation"), 1))
    _tell(name, shipped, metrics, forms)


def _write(
    folder: Path,
    data: PreparedData,
    shipped: FileScores,
    *,
    metrics: dict[str, float],
    forms: Sequence[MeasuredForm],
) -> None:
    with replaced_whole(folder / "logits.npy") as file:
        np.save(file, shipped.test_logits)
    names, labels = data.manifest.classes, data.split("test").labels
    answers = shipped.test_logits.argmax(axis=1)
    _write_confusion(
        folder / "confusion.csv", [(names[label], names[answer]) for label, answer in zip(labels, answers, strict=True)]
    )
    of_forms = {form.form: form.metrics for form in forms if form.metrics}
    write_json(folder / "evaluation.json", {"metrics": metrics, **({"forms": of_forms} if of_forms else {})})


def _tell(name: str, shipped: FileScores, metrics: dict[str, float], forms: Sequence[MeasuredForm]) -> None:
    print(
        f"{name}: test accuracy {metrics['accuracy_top1']:.2%} on {shipped.test.num_images} images, "
        f"{metrics['latency_ms_p50']:.3f} ms per image"
        + (f", {metrics['speedup']:.1f}x the teacher's speed" if "speedup" in metrics else "")
    )
    for form in forms:
        if form.broken:
            print(f"  {form.form}: {form.broken}")
        else:
            print(
                f"  {form.form}: {form.metrics['latency_ms_p50']:.3f} ms, {form.speedup:.2f}x float32's speed, "
                f"{form.metrics['size_mb']:.3f} MB, loses {form.metrics['drop_from_float32']:+.2%} on test"
            )


def _leave_absence(folder: Path) -> None:
    """What DVC expects of this stage, with nothing in it."""
    np.save(folder / "logits.npy", np.zeros((0, 0), dtype=np.float32))
    _write_confusion(folder / "confusion.csv", ())
    write_json(folder / "evaluation.json", {"metrics": {}})
    _write_details(folder, {})


def _write_details(folder: Path, details: dict[str, Any]) -> None:
    """Leave details.json, which seals what was written before it."""
    hashes = {name: file_sha256(folder / name) for name in ("evaluation.json", "logits.npy", "confusion.csv")}
    write_record(folder / "details.json", {**details, "hashes": hashes})


def _track(
    layout: Layout,
    name: str,
    shipped: dict[str, Any],
    metrics: dict[str, float],
    forms: Sequence[MeasuredForm],
    *,
    example: ImageArray,
) -> None:
    """Publish the files with what was measured on them: never one without the other."""
    run_id = read_json(layout.run(name), made_by="training")["run_id"]
    folder, step = layout.exported(name), shipped["epoch"]
    kept = [form for form in forms if form.metrics]
    with track(layout.root, name=name, stage="evaluate", run_id=run_id) as tracked:
        for form in kept:
            path = folder / form.file["file"]
            tracked.log_onnx(path, name=name, form=form.form, step=step, metrics=form.metrics, example=example)
        tracked.log_onnx(folder / shipped["file"], name=name, step=step, example=example)
        tracked.log_forms([form.form for form in kept])
        tracked.log_metrics(metrics)


def _score(path: Path, seed: int, data: PreparedData, settings: EvaluateSettings) -> FileScores:
    predict = load_for_accuracy(path, settings)
    validation, test = answers_of(predict, data, "validation", settings), answers_of(predict, data, "test", settings)
    return FileScores(seed, validation.scores, test.scores, test.logits)


def _shipped_files(layout: Layout, name: str, export: dict[str, Any], *, has_teacher: bool) -> dict[str, Path]:
    """What is timed together: the shipped file, its other forms, and the teacher's."""
    folder = layout.exported(name)
    files = {label(name, file["form"]): folder / file["file"] for file in (export["shipped"], *export["forms"])}
    if has_teacher and name != TEACHER:
        of_teacher = read_json(layout.exported(TEACHER) / "export.json", made_by="export")["shipped"]
        files[TEACHER] = layout.exported(TEACHER) / of_teacher["file"]
        check_sha256(files[TEACHER], of_teacher["sha256"], made_by="export")
    return files


def _time(files: dict[str, Path], data: PreparedData, settings: BenchmarkSettings) -> dict[str, Timings]:
    """Latencies taken in turns in this one process."""
    predictors = {name: load_predictor(path, threads=settings.threads) for name, path in files.items()}
    images = sample_images(data.split("validation"), max(settings.batch_sizes))
    return benchmark(predictors, images, settings=settings)


def _teacher(layout: Layout, timings: Timings) -> Reference:
    folder = layout.results(TEACHER)
    check_files(folder, read_json(folder / "details.json", made_by="evaluate"), made_by="evaluate")
    metrics = read_json(folder / "evaluation.json", made_by="evaluate")["metrics"]
    return Reference(metrics, np.load(folder / "logits.npy", allow_pickle=False), timings)


def _details(
    data: PreparedData,
    results: Sequence[FileScores],
    timings: dict[str, Timings],
    forms: Sequence[MeasuredForm],
    settings: EvaluateSettings,
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
        "forms": {form.form: form.details() for form in forms},
        "machine": {
            "processor": cpu_name(),
            "cores": os.cpu_count(),
            "threads": settings.benchmark.threads,
            "runtime": f"onnxruntime {onnxruntime.__version__}",
        },
    }


def _summary(scores: Scores) -> dict[str, Any]:
    return scores.model_dump(mode="json", exclude={"confusion"})


def _write_confusion(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    """One line per test image, as DVC's confusion template wants it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("actual", "predicted"))
        writer.writerows(rows)
