"""Half precision and the float entry, on a hand-made network with the entry of exported ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.errors import ArtifactError, ModelError
from compress.export.exported import entry_nodes, read_exported, write_exported
from compress.export.float_forms import as_float_entry, float16_model, write_float_entry
from compress.runtime import load_predictor
from tests.compress.onnx_files import random_images, write_colour_model

SIZE = (6, 5)


def network_file(path: Path, *, divisor: float = 255.0, weight: float = 1.0) -> Path:
    """Transpose, cast, divide, normalise, convolve, mean: what `export_onnx` writes, in milliseconds."""
    random = np.random.default_rng(0)
    constants = {
        "divisor": np.array(divisor, dtype=np.float32),
        "mean": np.array([0.4, 0.5, 0.6], dtype=np.float32).reshape(1, 3, 1, 1),
        "std": np.array([0.2, 0.3, 0.4], dtype=np.float32).reshape(1, 3, 1, 1),
        "weight": (weight * random.normal(size=(4, 3, 3, 3))).astype(np.float32),
        "bias": random.normal(size=4).astype(np.float32),
        "axes": np.array([2, 3], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["image"], ["first"], "transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["first"], ["float"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "divisor"], ["pixels"], "divide"),
        helper.make_node("Sub", ["pixels", "mean"], ["centred"], "centre"),
        helper.make_node("Div", ["centred", "std"], ["normal"], "normalise"),
        helper.make_node("Conv", ["normal", "weight", "bias"], ["maps"], "conv", kernel_shape=[3, 3]),
        helper.make_node("Relu", ["maps"], ["active"], "relu"),
        helper.make_node("ReduceMean", ["active", "axes"], ["logits"], "mean_of_pixels", keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", *SIZE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(model, {"classes": json.dumps(["a", "b", "c", "d"]), "name": '"made by hand"'})
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return network_file(tmp_path / "float32.onnx")


@pytest.fixture
def half(source: Path, tmp_path: Path) -> Path:
    exported = read_exported(source)
    path = tmp_path / "half.onnx"
    write_exported(path, float16_model(exported), made_of=exported, metadata={"form": "float16"})
    return path


def test_half_precision_keeps_interface_and_metadata(half: Path, source: Path) -> None:
    before, after = load_predictor(source), load_predictor(half)
    assert after.metadata == {**before.metadata, "form": "float16"}
    assert (after.classes, after.image_size) == (before.classes, before.image_size)


def test_half_precision_answers_to_within_its_rounding(half: Path, source: Path) -> None:
    images = random_images(20, SIZE)
    expected, given = load_predictor(source)(images), load_predictor(half)(images)
    # A sum of 27 products of numbers with 11 bits.
    np.testing.assert_allclose(given, expected, rtol=0, atol=27 * 2**-11 * np.abs(expected).max())
    assert np.abs(given - expected).max() > 0, "it does compute in half precision"


def test_the_entry_stays_in_single_precision(half: Path, source: Path) -> None:
    graph = onnx.load(half).graph
    assert [node.op_type for node in entry_nodes(graph)] == ["Transpose", "Cast", "Div", "Sub", "Div", "Cast"]
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert {types[name] for name in ("divisor", "mean", "std")} == {TensorProto.FLOAT}
    assert {types[name] for name in ("weight", "bias")} == {TensorProto.FLOAT16}
    casts = [node for node in graph.node if node.op_type == "Cast"]
    assert len(casts) == 3, "pixels to float, to half before the first layer, to float behind the last"


def test_half_precision_of_the_same_file_gives_the_same_bytes(half: Path, source: Path) -> None:
    exported = read_exported(source)
    write_exported(
        half.with_name("again.onnx"), float16_model(exported), made_of=exported, metadata={"form": "float16"}
    )
    assert half.with_name("again.onnx").read_bytes() == half.read_bytes()


def test_weights_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    exported = read_exported(network_file(tmp_path / "float32.onnx", weight=1e6))
    with pytest.raises(ModelError, match=r"weight holds .*e\+06, float16 ends at 65504; keep float32"):
        float16_model(exported)


def test_float_entry_computes_the_same_bits(source: Path, tmp_path: Path) -> None:
    write_float_entry(source, tmp_path / "entry.onnx")
    images = random_images(20, SIZE)
    session = ort.InferenceSession(str(tmp_path / "entry.onnx"), providers=["CPUExecutionProvider"])
    (given,) = session.run(["logits"], {"image": as_float_entry(images)})
    np.testing.assert_array_equal(given, load_predictor(source)(images))
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(float)", ["batch", 3, *SIZE])


def test_float_entry_of_half_precision_computes_the_same_bits(half: Path, tmp_path: Path) -> None:
    write_float_entry(half, tmp_path / "entry.onnx")
    session = ort.InferenceSession(str(tmp_path / "entry.onnx"), providers=["CPUExecutionProvider"])
    images = random_images(20, SIZE)
    (given,) = session.run(["logits"], {"image": as_float_entry(images)})
    np.testing.assert_array_equal(given, load_predictor(half)(images))


def test_float_entry_of_a_network_that_counts_its_images(tmp_path: Path) -> None:
    """As transformers do, to repeat their class token."""
    model = onnx.load(network_file(tmp_path / "float32.onnx"))
    graph = model.graph
    graph.node[-1].output[0] = "means"
    graph.initializer.append(numpy_helper.from_array(np.array([4], dtype=np.int64), "width"))
    graph.initializer.append(numpy_helper.from_array(np.array([[1, 2, 3, 4]], dtype=np.float32), "token"))
    graph.node.extend(
        [
            helper.make_node("Shape", ["image"], ["num_images"], "count", start=0, end=1),
            helper.make_node("Concat", ["num_images", "width"], ["shape"], "join", axis=0),
            helper.make_node("Expand", ["token", "shape"], ["tokens"], "repeat"),
            helper.make_node("Add", ["means", "tokens"], ["logits"], "add"),
        ]
    )
    (tmp_path / "float32.onnx").write_bytes(model.SerializeToString())
    write_float_entry(tmp_path / "float32.onnx", tmp_path / "entry.onnx")
    session = ort.InferenceSession(str(tmp_path / "entry.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 7):
        images = random_images(count, SIZE)
        (given,) = session.run(["logits"], {"image": as_float_entry(images)})
        np.testing.assert_array_equal(given, load_predictor(tmp_path / "float32.onnx")(images))


def test_float_entry_says_so_and_keeps_the_rest(source: Path, tmp_path: Path) -> None:
    write_float_entry(source, tmp_path / "entry.onnx")
    model = onnx.load(tmp_path / "entry.onnx")
    texts = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert texts["entry"] == "float_nchw"
    assert texts["input"].startswith("image: float32 RGB in [0, 1]")
    assert texts["classes"] == ["a", "b", "c", "d"]
    assert [node.op_type for node in model.graph.node] == ["Sub", "Div", "Conv", "Relu", "ReduceMean"]
    assert "divisor" not in {tensor.name for tensor in model.graph.initializer}


def test_the_runtime_refuses_a_float_entry(source: Path, tmp_path: Path) -> None:
    write_float_entry(source, tmp_path / "entry.onnx")
    with pytest.raises(ArtifactError, match="expected uint8 'image'"):
        load_predictor(tmp_path / "entry.onnx")
    with pytest.raises(ArtifactError, match="expected uint8 'image'"):
        write_float_entry(tmp_path / "entry.onnx", tmp_path / "twice.onnx")


def test_another_entry_is_an_error(tmp_path: Path) -> None:
    source = network_file(tmp_path / "float32.onnx", divisor=256.0)
    with pytest.raises(ModelError, match="does not begin with transpose, cast and division by 255"):
        write_float_entry(source, tmp_path / "entry.onnx")
    with pytest.raises(ModelError, match=r"does not begin with .* \(Cast, Mul, ReduceMean\)"):
        write_float_entry(write_colour_model(tmp_path / "colours.onnx"), tmp_path / "entry.onnx")
    assert not (tmp_path / "entry.onnx").exists()


def test_quantisation_can_be_imported_afterwards(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import sys

    for name in list(sys.modules):
        if name.startswith(("onnxruntime.transformers", "onnxruntime.quantization", "fusion_utils")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not entry.endswith("onnxruntime/transformers")])
    float16_model(read_exported(source))
    assert importlib.import_module("onnxruntime.quantization").quantize_static


def test_the_import_path_is_left_as_it_was(source: Path) -> None:
    import sys

    before = list(sys.path)
    float16_model(read_exported(source))
    assert sys.path == before
