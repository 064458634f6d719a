"""What x86 without VNNI answers: against its arithmetic spelled out, and against an emulated processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compress.data.prepared import ArraySplit
from compress.errors import ArtifactError
from compress.quantize import Int8Dynamic, Int8Static, WeightOnly
from compress.quantize.overflow import overflowing_pairs
from compress.quantize.saturation import Simulation, write_without_vnni
from compress.runtime import load_predictor
from tests.compress.quantize.conftest import Trained, calibration
from tests.compress.quantize.integer_files import Case, expected_logits, images, write_case

CASES = (
    Case(),
    Case(signed=True),
    Case(zero_point=0, pad=0),
    Case(kernel=1, pad=0),
    Case(stride=2),
    Case(kernel=5, pad=2),
    Case(outputs=6, group=3),
    Case(operator="Gemm"),
)

# Logits of ONNX Runtime 1.31.1 for the first and the last case, under qemu-x86_64 7.2 with -cpu Haswell.
ON_HASWELL = {
    CASES[0]: (
        (356.586, 473.717, -1.154, -139.057),
        (520.454, 785.297, 32.312, -152.905),
        (519.877, 778.9499, 32.312, -231.954),
    ),
    CASES[-1]: (
        (1470.02, -987.6934, 749.1833, 1937.12),
        (1382.87, -992.1067, 348.45, 2016.1599),
        (1881.1599, -605.68, 488.3667, 2932.3),
    ),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_simulation_is_the_arithmetic_spelled_out(case: Case, tmp_path: Path) -> None:
    simulation = write_without_vnni(write_case(tmp_path / "case.onnx", case), tmp_path / "simulated.onnx")
    assert simulation == Simulation(num_layers=1, num_layers_at_risk=1)
    exact, expected = (expected_logits(case, images(), saturates=saturates) for saturates in (False, True))
    assert np.abs(expected - exact).max() > 1.0, "the case overflows"
    # float32 sums of a few thousand.
    np.testing.assert_allclose(load_predictor(tmp_path / "simulated.onnx")(images()), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("case", ON_HASWELL, ids=str)
def test_simulation_is_what_an_emulated_processor_answered(case: Case, tmp_path: Path) -> None:
    write_without_vnni(write_case(tmp_path / "case.onnx", case), tmp_path / "simulated.onnx")
    given = load_predictor(tmp_path / "simulated.onnx")(images())
    np.testing.assert_allclose(given, np.array(ON_HASWELL[case]), rtol=0, atol=2e-3)


@pytest.mark.parametrize("case", [Case(outputs=3, group=3), Case(largest_weight=64)], ids=["depthwise", "seven bits"])
def test_layers_that_cannot_overflow_are_not_touched(case: Case, tmp_path: Path) -> None:
    source = write_case(tmp_path / "case.onnx", case)
    assert write_without_vnni(source, tmp_path / "simulated.onnx").num_layers_at_risk == 0
    given = load_predictor(tmp_path / "simulated.onnx")(images())
    np.testing.assert_array_equal(given, load_predictor(source)(images()))
    np.testing.assert_allclose(given, expected_logits(case, images(), saturates=False), rtol=0, atol=2e-3)


def test_pairs_overflow_from_129_on() -> None:
    weight = np.array([[64, 64, 0, 0], [64, 65, -128, -1], [127, 1, 127, -127], [127, 2, 0, 0]], dtype=np.int8)
    pairs = overflowing_pairs(weight.astype(np.int64))
    assert pairs.output.tolist() == [1, 1, 3]
    assert pairs.first.tolist() == [0, 2, 0]
    assert pairs.weights.tolist() == [[64, 65], [-128, -1], [127, 2]]


def test_an_odd_number_of_inputs_leaves_the_last_alone() -> None:
    assert overflowing_pairs(np.array([[0, 0, 127]])).output.tolist() == []


@pytest.mark.parametrize(
    ("quantizer", "num_layers", "is_at_risk"),
    [
        (Int8Static(), 4, True),
        (Int8Static(reduce_range=True), 4, False),
        (Int8Static(types="u8u8"), 4, False),
        (Int8Static(float_ends=True), 2, True),
        (Int8Dynamic(), 1, True),
        (WeightOnly(), 0, False),
    ],
    ids=lambda each: getattr(each, "label", ""),
)
def test_layers_at_risk_are_counted(
    quantizer: Int8Static, num_layers: int, is_at_risk: bool, cnn: Trained, train_split: ArraySplit, tmp_path: Path
) -> None:
    quantizer(cnn.path, tmp_path / "form.onnx", calibration=calibration(train_split))
    simulation = write_without_vnni(tmp_path / "form.onnx", tmp_path / "simulated.onnx")
    assert simulation.num_layers == num_layers
    assert (simulation.num_layers_at_risk > 0) == is_at_risk


def test_a_network_answers_differently_where_sums_overflow(
    cnn: Trained, train_split: ArraySplit, validation_images: np.ndarray, tmp_path: Path
) -> None:
    Int8Static()(cnn.path, tmp_path / "form.onnx", calibration=calibration(train_split))
    write_without_vnni(tmp_path / "form.onnx", tmp_path / "simulated.onnx")
    expected = load_predictor(tmp_path / "form.onnx")(validation_images)
    given = load_predictor(tmp_path / "simulated.onnx")(validation_images)
    assert np.abs(given - expected).max() > 0.01 * np.abs(expected).max()
    assert load_predictor(tmp_path / "simulated.onnx").metadata["simulates"] == "x86 without VNNI"


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"form\.onnx is missing"):
        write_without_vnni(tmp_path / "form.onnx", tmp_path / "simulated.onnx")
