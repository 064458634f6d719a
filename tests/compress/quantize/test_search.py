"""The search: real files, real answers, and latencies that the test decides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compress.benchmark import BenchmarkSettings, Timing
from compress.data.prepared import ArraySplit
from compress.errors import ArtifactError, DataError, ModelError
from compress.export import ExportSettings, export_onnx
from compress.quantize import Float16, Int8Dynamic, Int8Static, WeightOnly
from compress.quantize import search as search_module
from compress.quantize.search import search_forms
from compress.quantize.settings import SearchSettings, Target
from compress.quantize.verdict import FormResult, fastest
from compress.runtime import load_predictor
from compress.types import ImageArray, Predictor
from tests.compress.quantize.conftest import Trained

CANDIDATES = (Int8Static(), Int8Static(reduce_range=True), WeightOnly())


@pytest.fixture
def latencies(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Milliseconds by form; float32 takes 1.0 and so does what is not named."""
    chosen: dict[str, float] = {}

    def benchmark(
        predictors: Mapping[str, Predictor], images: ImageArray, *, settings: BenchmarkSettings
    ) -> dict[str, dict[int, Timing]]:
        (size,) = settings.batch_sizes
        return {
            form: {
                size: Timing(
                    batch_size=size,
                    latency_ms_p50=chosen.get(form, 1.0),
                    latency_ms_p95=2 * chosen.get(form, 1.0),
                    images_per_second=1000 / chosen.get(form, 1.0),
                    num_calls=1,
                )
            }
            for form in predictors
        }

    monkeypatch.setattr(search_module, "benchmark", benchmark)
    return chosen


def run(
    source: Path, train: ArraySplit, validation: ArraySplit, folder: Path, *, given: Mapping[str, Path] | None = None,
    **settings: object,
) -> dict[str, FormResult]:  # fmt: skip
    chosen = SearchSettings.model_validate(
        {"candidates": CANDIDATES, "num_calibration_images": 64, "threads": 1, **settings}
    )
    results = search_forms(
        source, calibration=train, validation=validation, settings=chosen, output_folder=folder, given=given
    )
    return {result.form: result for result in results}


def test_a_form_that_is_faster_smaller_and_accurate_is_kept(
    cnn: Trained,
    train_split: ArraySplit,
    validation_split: ArraySplit,
    validation_images: np.ndarray,
    latencies: dict[str, float],
    tmp_path: Path,
) -> None:
    latencies["int8_static"] = 0.4
    results = run(cnn.path, train_split, validation_split, tmp_path)
    assert list(results) == ["float32", "int8_static", "int8_static_reduce_range", "weight_only"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["int8_static.onnx"]
    kept, measured = results["int8_static"], results["int8_static"].measured
    assert measured is not None
    assert (kept.is_kept, kept.file, kept.quantizer) == (True, "int8_static.onnx", Int8Static())
    predictor = load_predictor(tmp_path / "int8_static.onnx")
    answers = predictor(validation_images).argmax(axis=1)
    assert measured.accuracy_validation == pytest.approx(np.mean(answers == validation_split.labels))
    assert (measured.sha256, measured.size_bytes) == (predictor.sha256, predictor.size_bytes)
    assert measured.speedup == pytest.approx(2.5)
    assert measured.num_calibration_images == 64
    assert measured.saturation is not None
    assert measured.saturation.num_layers_at_risk == 4
    assert kept.reason.startswith("2.5 times as fast (0.4 ms, float32 1 ms), ")
    assert results["float32"].reason == "the reference; 1 of 3 other forms are worth having"
    assert fastest(list(results.values())) == kept


def test_no_gain_leaves_float32_and_nothing_of_an_earlier_search(
    cnn: Trained, train_split: ArraySplit, validation_split: ArraySplit, latencies: dict[str, float], tmp_path: Path
) -> None:
    latencies["int8_static"] = 0.96
    (tmp_path / "int8_static.onnx").write_bytes(b"of an earlier search")
    results = run(cnn.path, train_split, validation_split, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert results["int8_static"].reason == "no gain, keep float32: 1.042 times as fast, 1.05 needed"
    assert results["int8_static"].measured is not None
    assert results["int8_static"].measured.saturation is None
    assert results["float32"].reason == "the reference; no gain by any other form"
    assert fastest(list(results.values())) == results["float32"]


def test_a_result_is_json(
    cnn: Trained, train_split: ArraySplit, validation_split: ArraySplit, latencies: dict[str, float], tmp_path: Path
) -> None:
    latencies["int8_static"] = 0.4
    for result in run(cnn.path, train_split, validation_split, tmp_path).values():
        assert FormResult.model_validate_json(result.model_dump_json()) == result


def test_a_form_that_loses_accuracy_is_refused_with_numbers(
    cnn: Trained, train_split: ArraySplit, validation_split: ArraySplit, latencies: dict[str, float], tmp_path: Path
) -> None:
    """A file made elsewhere, whose last layer is negated."""
    flipped = tmp_path / "flipped.onnx"
    write_flipped(cnn, flipped)
    latencies["flipped"] = 0.1
    results = run(cnn.path, train_split, validation_split, tmp_path / "forms", given={"flipped": flipped})
    assert not results["flipped"].is_kept
    assert "of validation accuracy, 0.01 allowed" in results["flipped"].reason
    assert results["flipped"].quantizer is None
    run(cnn.path, train_split, validation_split, tmp_path, given={"flipped": flipped}, candidates=())
    assert flipped.exists(), "what was made elsewhere stays there, in this folder too"


def write_flipped(trained: Trained, path: Path) -> None:
    """The network with its last weights negated, stored in half precision so that it is smaller."""
    network = trained.network
    with torch.no_grad():
        head = list(network.parameters())[-2]
        head.neg_()
        metadata = {"classes": list("0123456789")}
        export_onnx(network, path, image_size=(8, 8), settings=ExportSettings(), metadata=metadata)
        head.neg_()
    half = path.with_name("half.onnx")
    Float16()(path, half)
    half.replace(path)


class Brightness(nn.Module):
    """Class 0 if an image's red, green and blue add up to more than 2.4, class 1 otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.sums = nn.Conv2d(3, 2, 1)
        with torch.no_grad():
            self.sums.weight.zero_()
            self.sums.weight[0] = 1.0
            self.sums.bias.copy_(torch.tensor([0.0, 2.4]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.sums(images).mean((2, 3))


@pytest.fixture(scope="module")
def brightness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its three largest weights add up to more than 16 bits hold: bright images look dark without VNNI."""
    path = tmp_path_factory.mktemp("brightness") / "float32.onnx"
    export_onnx(
        Brightness(), path, image_size=(4, 4), settings=ExportSettings(), metadata={"classes": ["bright", "dark"]}
    )
    return path


def grey() -> ArraySplit:
    levels = np.arange(0, 256, 3)
    pixels = np.broadcast_to(levels[:, None, None, None], (len(levels), 4, 4, 3)).astype(np.uint8)
    return ArraySplit(np.ascontiguousarray(pixels), (levels * 3 / 255 <= 2.4).astype(np.int64))


@pytest.mark.parametrize(("has_vnni", "is_kept"), [("auto", False), (False, False), (True, True)])
def test_overflow_is_refused_unless_the_target_has_vnni(
    has_vnni: bool | str,
    is_kept: bool,
    brightness: Path,
    latencies: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    # So few weights that no form is smaller: that is not what is tested here.
    monkeypatch.setattr(search_module, "violations", without_size(search_module.violations))
    latencies |= {"int8_static": 0.5, "int8_static_reduce_range": 0.5}
    results = run(
        brightness,
        grey(),
        grey(),
        tmp_path,
        candidates=(Int8Static(), Int8Static(reduce_range=True)),
        max_drop=0.02,
        target=Target.model_validate({"has_vnni": has_vnni}),
    )
    assert results["int8_static"].is_kept is is_kept
    assert results["int8_static_reduce_range"].is_kept
    measured = results["int8_static"].measured
    assert measured is not None
    assert measured.saturation is not None
    assert measured.drop <= 0.02 < 0.1 < measured.saturation.drop
    if not is_kept:
        assert "on x86 without VNNI sums overflow in 1 of 1 layers: loses 0." in results["int8_static"].reason
        assert "use reduce_range or u8u8" in results["int8_static"].reason
        assert ("declare target.has_vnni: true" in results["int8_static"].reason) == (has_vnni == "auto")
    else:
        assert "; without VNNI it loses 0." in results["int8_static"].reason


def without_size(violations):
    return lambda *arguments: [each for each in violations(*arguments) if not each.startswith("not smaller")]


def test_candidates_that_cannot_be_made_are_listed(
    brightness: Path, latencies: dict[str, float], tmp_path: Path
) -> None:
    results = run(brightness, grey(), grey(), tmp_path, candidates=(Int8Dynamic(),))
    assert results["int8_dynamic"].measured is None
    assert results["int8_dynamic"].reason.startswith("cannot be made: ")
    assert "use int8_static" in results["int8_dynamic"].reason


def test_forms_of_one_name_are_a_wrong_call(
    cnn: Trained, train_split: ArraySplit, validation_split: ArraySplit, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"every form needs a name of its own, got float32, weight_only, weight_only"):
        run(cnn.path, train_split, validation_split, tmp_path, candidates=(WeightOnly(), WeightOnly()))


def test_empty_splits_and_wrong_sources_are_errors(
    cnn: Trained, train_split: ArraySplit, validation_split: ArraySplit, tmp_path: Path
) -> None:
    empty = ArraySplit(np.zeros((0, 8, 8, 3), dtype=np.uint8), np.zeros(0, dtype=np.int64))
    with pytest.raises(DataError, match="no calibration images: the split is empty"):
        run(cnn.path, empty, validation_split, tmp_path)
    with pytest.raises(DataError, match="no validation images: the split is empty"):
        run(cnn.path, train_split, empty, tmp_path)
    with pytest.raises(ArtifactError, match="is missing"):
        run(tmp_path / "nothing.onnx", train_split, validation_split, tmp_path)
    Float16()(cnn.path, tmp_path / "half.onnx")
    with pytest.raises(ModelError, match="holds float16 weights already"):
        run(tmp_path / "half.onnx", train_split, validation_split, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"cannot make the folder .*file"):
        run(cnn.path, train_split, validation_split, tmp_path / "file")


def test_images_are_drawn_by_the_seed(
    cnn: Trained, train_split: ArraySplit, validation_split: ArraySplit, latencies: dict[str, float], tmp_path: Path
) -> None:
    latencies["int8_static"] = 0.5

    def digest(seed: int) -> str:
        results = run(
            cnn.path, train_split, validation_split, tmp_path, candidates=(Int8Static(),), seed=seed,
            num_calibration_images=3, num_validation_images=40,
        )  # fmt: skip
        measured = results["int8_static"].measured
        assert measured is not None
        return measured.sha256

    assert digest(0) == digest(0) != digest(1)


def test_real_timing_gives_every_form_a_speed(
    cnn: Trained, train_split: ArraySplit, validation_split: ArraySplit, tmp_path: Path
) -> None:
    results = run(cnn.path, train_split, validation_split, tmp_path, min_seconds=0.05, num_validation_images=50)
    for result in results.values():
        assert result.measured is not None
        assert 0 < result.measured.latency_ms_p50 <= result.measured.latency_ms_p95
    assert results["float32"].measured is not None
    assert results["float32"].measured.speedup == 1.0
