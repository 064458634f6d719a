"""Static 8-bit files: what runs as integers, what stays in float, and that exclusions hold in the runtime."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compress.data.prepared import ArraySplit
from compress.export.exported import entry_nodes, read_exported
from compress.quantize import Int8Static
from compress.quantize.fusion import fusion
from compress.quantize.source import layers
from compress.runtime import load_predictor
from tests.compress.quantize.conftest import Trained, calibration

is_x86 = pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="speaks of ONNX Runtime on x86")


def write(trained: Trained, split: ArraySplit, path: Path, **settings: object) -> Path:
    Int8Static.model_validate({"name": "int8_static", **settings})(trained.path, path, calibration=calibration(split))
    return path


def test_every_layer_runs_as_integers(residual: Trained, train_split: ArraySplit, tmp_path: Path) -> None:
    found = fusion(write(residual, train_split, tmp_path / "form.onnx"))
    assert (found.num_layers, found.num_integer, found.float_layers) == (10, 10, ())
    assert found.operators["QLinearConv"] == 9
    assert found.operators["QLinearAdd"] == 3
    assert "Conv" not in found.operators


@is_x86
def test_signed_activations_beside_shortcuts_are_found_to_run_in_float(
    residual: Trained, train_split: ArraySplit, tmp_path: Path
) -> None:
    found = fusion(write(residual, train_split, tmp_path / "form.onnx", types="s8s8"))
    assert found.num_layers == 10
    assert found.num_integer == 10 - len(found.float_layers) < 10


def test_float_ends_leaves_first_and_last_layer_in_float(cnn: Trained, train_split: ArraySplit, tmp_path: Path) -> None:
    found = fusion(write(cnn, train_split, tmp_path / "form.onnx", float_ends=True))
    assert (found.num_layers, found.num_integer) == (2, 2)
    assert found.operators["QLinearConv"] == 2
    assert sum(found.operators.get(name, 0) for name in ("Conv", "FusedConv")) == 1
    assert sum(found.operators.get(name, 0) for name in ("Gemm", "FusedGemm")) == 1


def test_an_excluded_layer_between_quantised_ones_runs_in_float(
    cnn: Trained, train_split: ArraySplit, tmp_path: Path
) -> None:
    """ONNX Runtime rounds float weights between DequantizeLinear and QuantizeLinear to 8 bits if nothing hinders it."""
    middle = layers(read_exported(cnn.path).model.graph)[1]
    path = write(cnn, train_split, tmp_path / "form.onnx", excluded_nodes=(middle.name,))
    found = fusion(path)
    assert (found.num_layers, found.num_integer) == (3, 3)
    assert sum(found.operators.get(name, 0) for name in ("Conv", "FusedConv")) == 1
    kept = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    assert kept[middle.weight.name].raw_data == middle.weight.raw_data


def test_pixels_are_normalised_in_float(cnn: Trained, train_split: ArraySplit, tmp_path: Path) -> None:
    graph = onnx.load(write(cnn, train_split, tmp_path / "form.onnx")).graph
    entry = [node.op_type for node in entry_nodes(graph)]
    assert entry == [node.op_type for node in entry_nodes(onnx.load(cnn.path).graph)]
    (behind,) = [node for node in graph.node if entry_nodes(graph)[-1].output[0] in node.input]
    assert behind.op_type == "QuantizeLinear"


def test_logits_are_not_rounded(cnn: Trained, train_split: ArraySplit, tmp_path: Path) -> None:
    path = write(cnn, train_split, tmp_path / "form.onnx")
    images = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3), dtype=np.uint8)
    assert len(np.unique(load_predictor(path)(images))) > 256
    assert onnx.load(path).graph.node[-1].op_type == "Gemm"


def test_reduced_weights_have_seven_bits(cnn: Trained, train_split: ArraySplit, tmp_path: Path) -> None:
    def largest(path: Path) -> int:
        weights = [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
        return max(int(np.abs(w.astype(np.int64)).max()) for w in weights if w.dtype == np.int8 and w.ndim > 1)

    assert largest(write(cnn, train_split, tmp_path / "a.onnx")) == 127
    assert largest(write(cnn, train_split, tmp_path / "b.onnx", reduce_range=True)) == 64


def test_biases_carry_no_zero_points(cnn: Trained, train_split: ArraySplit, tmp_path: Path) -> None:
    graph = onnx.load(write(cnn, train_split, tmp_path / "form.onnx")).graph
    biases = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT32}
    unpacked = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in biases]
    assert len(unpacked) == 4
    assert all(len(node.input) == 2 for node in unpacked)


def test_the_most_sensitive_layers_are_left_out(cnn: Trained, train_split: ArraySplit, tmp_path: Path) -> None:
    quantizer = Int8Static(num_sensitive_excluded=2)
    made = quantizer(cnn.path, tmp_path / "form.onnx", calibration=calibration(train_split))
    ranked = quantizer.sensitivities(cnn.path, calibration(train_split))
    assert made.excluded_nodes == tuple(layer.node for layer in ranked[:2])
    assert load_predictor(tmp_path / "form.onnx").metadata["quantization"]["excluded_nodes"] == [*made.excluded_nodes]
    assert fusion(tmp_path / "form.onnx").num_layers == 2
