"""Weights in few bits, unpacked when the file is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.errors import ModelError
from compress.quantize import WeightOnly
from compress.quantize.source import layers
from compress.quantize.weight_only import Storage
from compress.runtime import load_predictor
from tests.compress.quantize.conftest import Trained

FEATURES = 4 * 6 * 3
OUTPUTS = 75


def product_file(path: Path, weight: np.ndarray, *, operator: str = "MatMul") -> Path:
    """Pixels, flat, times a matrix of (72, 75)."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "flat"], ["features"], "flatten"),
        helper.make_node(operator, ["features", "first"], ["hidden"], "one"),
        helper.make_node(operator, ["hidden", "weight"], ["wide"], "two"),
        helper.make_node(operator, ["wide", "last"], ["logits"], "three"),
    ]
    constants = {
        "flat": np.array([0, -1], dtype=np.int64),
        "first": np.eye(FEATURES, dtype=np.float32),
        "weight": weight.astype(np.float32),
        "last": np.eye(OUTPUTS, dtype=np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 4, 6, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", OUTPUTS])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def unpacked(path: Path, name: str) -> np.ndarray:
    """A weight as the file's own nodes say it."""
    model = onnx.load(path)
    graph = model.graph
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([name], {"image": np.zeros((1, 4, 6, 3), dtype=np.uint8)})[0]


# Half a step, as a share of the largest weight of its channel or group; bfloat16 and float16 of the weight itself.
@pytest.mark.parametrize(
    ("storage", "bound"), [("int8", 0.5 / 127), ("int4", 1 / 7), ("float16", 2**-11), ("bfloat16", 2**-8)]
)
@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_weights_come_back_to_within_half_a_step(storage: Storage, bound: float, operator: str, tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(FEATURES, OUTPUTS)).astype(np.float32)
    source = product_file(tmp_path / "float32.onnx", weight, operator=operator)
    WeightOnly(storage=storage)(source, tmp_path / "form.onnx")
    given = unpacked(tmp_path / "form.onnx", "weight")
    assert given.shape == weight.shape
    scale = np.abs(weight).max(axis=0, keepdims=True) if storage == "int8" else np.abs(weight).max()
    assert np.abs(given - weight).max() <= (bound * 1.001 * scale).max()
    assert np.corrcoef(given.ravel(), weight.ravel())[0, 1] > 0.99


def test_four_bits_cut_a_group_where_that_loses_less(tmp_path: Path) -> None:
    """With the largest weight kept, half of the levels would be empty."""
    weight = np.random.default_rng(0).normal(size=(FEATURES, OUTPUTS)).astype(np.float32)
    source = product_file(tmp_path / "float32.onnx", weight)
    WeightOnly(storage="int4")(source, tmp_path / "form.onnx")
    error = np.square(unpacked(tmp_path / "form.onnx", "weight") - weight).mean()
    groups = np.pad(weight.T.ravel(), (0, -weight.size % 32)).reshape(-1, 32)
    step = np.abs(groups).max(axis=1, keepdims=True) / 7
    assert error < 0.95 * np.square(np.rint(groups / step) * step - groups).mean()


@pytest.mark.parametrize("storage", ["int8", "int4", "float16", "bfloat16"])
def test_the_runtime_unpacks_once_when_it_loads(storage: Storage, cnn: Trained, tmp_path: Path) -> None:
    WeightOnly(storage=storage)(cnn.path, tmp_path / "form.onnx")

    def operators(path: Path) -> list[str]:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return sorted(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)

    assert operators(tmp_path / "form.onnx") == operators(cnn.path)


def test_small_and_excluded_weights_stay_as_they_are(cnn: Trained, tmp_path: Path) -> None:
    of_source = layers(onnx.load(cnn.path).graph)
    third = of_source[2]
    WeightOnly(excluded_nodes=(third.name,))(cnn.path, tmp_path / "form.onnx")
    kept = {tensor.name for tensor in onnx.load(tmp_path / "form.onnx").graph.initializer}
    sizes = {layer.weight.name: int(np.prod(layer.weight.dims)) for layer in of_source}
    assert {name for name in sizes if name in kept} == {
        name for name, size in sizes.items() if size < 512 or name == third.weight.name
    }


def test_int4_keeps_first_and_last_layer_in_eight_bits(tmp_path: Path) -> None:
    source = product_file(tmp_path / "float32.onnx", np.ones((FEATURES, OUTPUTS)))
    WeightOnly(storage="int4")(source, tmp_path / "form.onnx")
    names = {tensor.name for tensor in onnx.load(tmp_path / "form.onnx").graph.initializer}
    assert {"first.bytes", "weight.nibbles", "last.bytes"} <= names


def test_weights_beyond_float16_are_refused_and_fit_bfloat16(tmp_path: Path) -> None:
    source = product_file(tmp_path / "float32.onnx", np.full((FEATURES, OUTPUTS), 1e5))
    with pytest.raises(ModelError, match=r"weight holds 1e\+05, float16 ends at 65504; use storage: bfloat16"):
        WeightOnly(storage="float16")(source, tmp_path / "form.onnx")
    WeightOnly(storage="bfloat16")(source, tmp_path / "form.onnx")
    assert load_predictor_ok(tmp_path / "form.onnx")


def load_predictor_ok(path: Path) -> bool:
    """Runs, whatever its classes are called."""
    return unpacked(path, "weight").shape == (FEATURES, OUTPUTS)


def test_nothing_to_pack_is_an_error(cnn: Trained, tmp_path: Path) -> None:
    names = tuple(layer.name for layer in layers(onnx.load(cnn.path).graph))
    with pytest.raises(ModelError, match="no weights large enough to save anything; keep float32"):
        WeightOnly(excluded_nodes=names)(cnn.path, tmp_path / "form.onnx")


def test_answers_hardly_change(cnn: Trained, validation_images: np.ndarray, tmp_path: Path) -> None:
    WeightOnly()(cnn.path, tmp_path / "form.onnx")
    expected = load_predictor(cnn.path)(validation_images)
    given = load_predictor(tmp_path / "form.onnx")(validation_images)
    # Eight bits per channel move a logit by well under a hundredth of the largest.
    assert np.abs(given - expected).max() < 0.02 * np.abs(expected).max()
