"""Every form of a file that is worth having, found by making and measuring them.

Accuracy is that of the file in ONNX Runtime on the validation split, latency is taken in turns with float32, and a
form is kept only if it is smaller, faster and accurate enough on the declared target. Otherwise the answer is float32.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from compress.benchmark import BenchmarkSettings, Timing, benchmark
from compress.data.prepared import PreparedSplit
from compress.errors import ArtifactError, CompressError, DataError, ModelError
from compress.evaluate import agreement, evaluate
from compress.files import write_whole
from compress.quantize import AnyQuantizer
from compress.quantize.base import QuantizedFile
from compress.quantize.fusion import Fusion, fusion
from compress.quantize.machine import has_vnni
from compress.quantize.saturation import Saturation, write_without_vnni
from compress.quantize.settings import SearchSettings
from compress.quantize.source import read_float32
from compress.quantize.verdict import FLOAT32, FormResult, Measured, violations, why_kept
from compress.runtime import OnnxPredictor, load_predictor
from compress.types import ImageArray, IndexArray, LogitArray

NUM_BATCH_IMAGES = 8
"""Images that are answered alone and together, to see whether answers depend on the batch."""


class _Scored(NamedTuple):
    """A form's file with its answers."""

    form: str
    path: Path
    quantizer: AnyQuantizer | None
    made: QuantizedFile | None
    accuracy: float
    logits: LogitArray
    size_bytes: int
    sha256: str
    batch_error: float
    fusion: Fusion
    num_calibration_images: int


def search_forms(
    source: Path,
    *,
    calibration: PreparedSplit,
    validation: PreparedSplit,
    settings: SearchSettings,
    output_folder: Path,
    given: Mapping[str, Path] | None = None,
) -> list[FormResult]:
    """Try every candidate and keep, as `<form>.onnx` in the output folder, the files that are worth having.

    `given` are files of other forms made elsewhere (by quantisation-aware training), judged like the candidates. The
    first result is float32; it stays where it is. Cost: for each candidate one conversion, one pass over validation
    and its share of the timing; for those that pass, another pass of several times the price without VNNI.

    Raises:
        ArtifactError: the source is missing or damaged, or the folder cannot be written.
        ModelError: the source is not in float32.
        DataError: a split is empty.
    """
    read_float32(source)
    files = dict(given or {})
    forms = [FLOAT32, *(candidate.label for candidate in settings.candidates), *files]
    if len(set(forms)) < len(forms):
        raise ValueError(f"every form needs a name of its own, got {', '.join(forms)}")
    _make_folder(output_folder)
    search = _Search(calibration, validation, settings)
    with tempfile.TemporaryDirectory() as scratch:
        scored, failed = search.candidates(source, Path(scratch))
        scored.extend(search.scored(form, path) for form, path in files.items())
        timings = search.timings(scored)
        measured = [search.measured(each, scored[0], timings) for each in scored]
        judged = [search.judged(each, facts, measured[0]) for each, facts in zip(scored, measured, strict=True)]
        _publish([*judged[1:], *failed], {each.form: each.path for each in scored}, output_folder)
    return [_with_outcome(judged[0], judged[1:]), *judged[1:], *failed]


def _make_folder(folder: Path) -> None:
    """Before anything costs time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"cannot make the folder {folder}: {error.strerror}; choose another") from error


def _publish(results: Sequence[FormResult], paths: Mapping[str, Path], folder: Path) -> None:
    """Put the files that are kept into the folder, and take those of an earlier search out of it."""
    try:
        for result in results:
            path, place = paths.get(result.form), folder / f"{result.form}.onnx"
            if path is not None and path.resolve() == place.resolve():
                continue  # made elsewhere, by whoever called
            if path is not None and result.is_kept:
                write_whole(place, path.read_bytes())
            else:
                place.unlink(missing_ok=True)
    except OSError as error:
        raise ArtifactError(f"cannot write {folder}: {error.strerror}; choose a writable folder") from error


class _Search:
    """The images of a search and what is measured on them."""

    def __init__(self, calibration: PreparedSplit, validation: PreparedSplit, settings: SearchSettings) -> None:
        self.settings = settings
        self._calibration, self._validation = calibration, validation
        self._observed = _drawn(calibration, settings.num_calibration_images, settings.seed, "calibration")
        self._scored_on = _drawn(validation, settings.num_validation_images, settings.seed, "validation")
        self._labels = validation.labels[self._scored_on]

    def candidates(self, source: Path, folder: Path) -> tuple[list[_Scored], list[FormResult]]:
        """Float32 and every form that could be made, with their answers; and those that could not."""
        scored = [self.scored(FLOAT32, source)]
        failed: list[FormResult] = []
        for candidate in self.settings.candidates:
            path = folder / f"{candidate.label}.onnx"
            try:
                made = candidate(source, path, calibration=self._batches(self._calibration, self._observed))
                scored.append(self.scored(candidate.label, path, quantizer=candidate, made=made))
            except (ModelError, ArtifactError) as error:
                failed.append(_failure(candidate, error))
        return scored, failed

    def scored(
        self, form: str, path: Path, *, quantizer: AnyQuantizer | None = None, made: QuantizedFile | None = None
    ) -> _Scored:
        """Load a file and let it answer the validation images."""
        predict = load_predictor(path, threads=self._threads())
        accuracy, logits = self._answers(predict)
        few = self._images(self._validation, self._scored_on[:NUM_BATCH_IMAGES])
        return _Scored(
            form=form,
            path=path,
            quantizer=quantizer,
            made=made,
            accuracy=accuracy,
            logits=logits,
            size_bytes=predict.size_bytes,
            sha256=predict.sha256,
            batch_error=_batch_error(predict, few),
            fusion=fusion(path),
            num_calibration_images=made.num_calibration_images if made else _num_observed(predict),
        )

    def timings(self, scored: Sequence[_Scored]) -> dict[str, Timing]:
        """Latencies at the target's threads and batch size, all files in turns."""
        target = self.settings.target
        predictors = {each.form: load_predictor(each.path, threads=target.threads) for each in scored}
        settings = BenchmarkSettings(
            batch_sizes=(target.batch_size,), threads=target.threads, min_seconds=self.settings.min_seconds
        )
        images = self._images(self._validation, self._scored_on[: target.batch_size])
        timed = benchmark(predictors, images, settings=settings)
        return {form: by_batch[target.batch_size] for form, by_batch in timed.items()}

    def measured(self, scored: _Scored, reference: _Scored, timings: Mapping[str, Timing]) -> Measured:
        """Everything but what happens without VNNI."""
        right = scored.logits.argmax(axis=1) == self._labels
        right_in_float = reference.logits.argmax(axis=1) == self._labels
        lost = right_in_float.astype(np.float64) - right
        timing = timings[scored.form]
        return Measured(
            size_bytes=scored.size_bytes,
            size_ratio=scored.size_bytes / reference.size_bytes,
            sha256=scored.sha256,
            accuracy_validation=scored.accuracy,
            drop=float(lost.mean()),
            drop_standard_error=float(lost.std() / np.sqrt(len(lost))),
            agreement=agreement(scored.logits, reference.logits),
            batch_error=scored.batch_error,
            latency_ms_p50=timing.latency_ms_p50,
            latency_ms_p95=timing.latency_ms_p95,
            speedup=timings[FLOAT32].latency_ms_p50 / timing.latency_ms_p50,
            num_calibration_images=scored.num_calibration_images,
            excluded_nodes=scored.made.excluded_nodes if scored.made else (),
            fusion=scored.fusion,
        )

    def judged(self, scored: _Scored, measured: Measured, reference: Measured) -> FormResult:
        """Keep or refuse; what happens without VNNI is computed only for a form that passes otherwise."""
        if scored.form == FLOAT32:
            return _result(scored, measured, reason="the reference")
        broken = violations(measured, reference, self.settings)
        if not broken and measured.fusion.num_integer:
            saturation = self._saturation(scored, accuracy_in_float=reference.accuracy_validation)
            measured = measured.model_copy(update={"saturation": saturation})
            broken = violations(measured, reference, self.settings)
        if broken:
            return _result(scored, measured, reason=f"no gain, keep float32: {'; '.join(broken)}")
        told = why_kept(measured, reference, self.settings.target, machine_has_vnni=has_vnni())
        return _result(scored, measured, reason=told, file=f"{scored.form}.onnx")

    def _saturation(self, scored: _Scored, *, accuracy_in_float: float) -> Saturation:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "without_vnni.onnx"
            simulation = write_without_vnni(scored.path, path)
            accuracy, logits = scored.accuracy, scored.logits
            if simulation.num_layers_at_risk:  # otherwise the answers are the same
                accuracy, logits = self._answers(load_predictor(path, threads=self._threads()))
        return Saturation(
            num_layers=simulation.num_layers,
            num_layers_at_risk=simulation.num_layers_at_risk,
            accuracy_validation=accuracy,
            drop=accuracy_in_float - accuracy,
            agreement=agreement(logits, scored.logits),
            logit_error=_relative_error(logits, scored.logits),
        )

    def _answers(self, predict: OnnxPredictor) -> tuple[float, LogitArray]:
        """Top-1 accuracy and all logits."""
        batches = self._batches(self._validation, self._scored_on)
        size = self.settings.batch_size
        labelled = ((images, self._labels[i * size : (i + 1) * size]) for i, images in enumerate(batches))
        evaluation = evaluate(predict, labelled, num_classes=len(predict.classes))
        return evaluation.scores.accuracy_top1, evaluation.logits

    def _batches(self, split: PreparedSplit, indices: IndexArray) -> Iterator[ImageArray]:
        for start in range(0, len(indices), self.settings.batch_size):
            yield self._images(split, indices[start : start + self.settings.batch_size])

    def _images(self, split: PreparedSplit, indices: IndexArray) -> ImageArray:
        return split.images(indices).numpy()

    def _threads(self) -> int:
        return self.settings.threads or os.cpu_count() or 1


def _drawn(split: PreparedSplit, count: int | None, seed: int, role: str) -> IndexArray:
    """Places of so many images of a split, drawn from all of it."""
    if len(split) == 0:
        raise DataError(f"no {role} images: the split is empty; carve one out of train")
    # In random order: the first of a split are of one class, and some quantisers look at the first only.
    return np.random.default_rng(seed).permutation(len(split))[:count].astype(np.int64)


def _batch_error(predict: OnnxPredictor, images: ImageArray) -> float:
    return _relative_error(np.concatenate([predict(image[None]) for image in images]), predict(images))


def _num_observed(predict: OnnxPredictor) -> int:
    """Images that a form made elsewhere says it was calibrated on."""
    match predict.metadata.get("quantization"):
        case {"num_calibration_images": int(number)}:
            return number
        case _:
            return 0


def _relative_error(logits: LogitArray, expected: LogitArray) -> float:
    """Largest difference of a logit, as a fraction of the largest expected one."""
    largest = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    return float(np.abs(logits - expected).max()) / largest


def _result(scored: _Scored, measured: Measured, *, reason: str, file: str | None = None) -> FormResult:
    return FormResult(
        form=scored.form,
        quantizer=scored.quantizer,
        file=file,
        is_kept=file is not None or scored.form == FLOAT32,
        reason=reason,
        measured=measured,
    )


def _failure(candidate: AnyQuantizer, error: CompressError) -> FormResult:
    return FormResult(
        form=candidate.label,
        quantizer=candidate,
        file=None,
        is_kept=False,
        reason=f"cannot be made: {error}",
        measured=None,
    )


def _with_outcome(reference: FormResult, others: Sequence[FormResult]) -> FormResult:
    num_kept = sum(result.is_kept for result in others)
    told = f"{num_kept} of {len(others)} other forms are worth having" if num_kept else "no gain by any other form"
    return reference.model_copy(update={"reason": f"the reference; {told}"})
