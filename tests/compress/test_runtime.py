"""Exported files are loaded whole, checked first, and refuse what they cannot answer."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.errors import ArtifactError, DeviceError
from compress.runtime import load_predictor
from tests.compress.onnx_files import CLASSES, SIZE, colour_logits, colour_model, random_images, write_colour_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_colour_model(tmp_path / "model.onnx")


def write(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("batch_size", [0, 1, 2, 7, 32])
def test_any_batch_size_is_answered_image_by_image(path: Path, batch_size: int) -> None:
    images = random_images(batch_size)
    logits = load_predictor(path)(images)
    assert logits.dtype == np.float32
    # float32 means of 24 numbers below 256: one rounding step is 1.5e-5.
    np.testing.assert_allclose(logits, colour_logits(images), rtol=0, atol=1e-4)


def test_file_tells_its_classes_size_hash_and_metadata(tmp_path: Path) -> None:
    model = colour_model()
    helper.set_model_props(
        model, {"classes": '["rot", "grün", "blau"]', "lineage": '{"teacher": "ab"}', "onnx.infer": "onnxruntime.quant"}
    )
    path = write(tmp_path / "model.onnx", model)
    predictor = load_predictor(path)
    content = path.read_bytes()
    assert predictor.classes == ("rot", "grün", "blau")
    assert predictor.image_size == SIZE
    assert predictor.size_bytes == len(content)
    assert predictor.sha256 == hashlib.sha256(content).hexdigest()
    assert predictor.metadata["lineage"] == {"teacher": "ab"}
    assert predictor.metadata["onnx.infer"] == "onnxruntime.quant", "text that is no JSON stays text"


def test_memory_mapped_and_strided_images_are_answered(path: Path, tmp_path: Path) -> None:
    images = random_images(8)
    np.save(tmp_path / "images.npy", images)
    predictor = load_predictor(path)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    np.testing.assert_array_equal(predictor(mapped[::2]), predictor(images[::2].copy()))


def test_file_may_be_moved_or_deleted_after_loading(path: Path) -> None:
    predictor = load_predictor(path)
    path.unlink()
    assert predictor(random_images(1)).shape == (1, 3)


def test_session_has_the_threads_asked_for_and_does_not_spin(path: Path) -> None:
    options = load_predictor(path, threads=2)._session.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize(
    "images",
    [
        random_images(2).astype(np.float32),
        random_images(2)[0],
        random_images(2, (6, 4)),
        random_images(2).transpose(0, 3, 1, 2),
    ],
    ids=["float", "one image", "turned", "channels first"],
)
def test_images_of_another_kind_are_refused_naming_both_sides(path: Path, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 .*\(batch, 4, 6, 3\), got ") as caught:
        load_predictor(path)(images)
    assert f"{images.dtype} {images.shape}" in str(caught.value)


def test_gpu_is_an_error_where_there_is_none(path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(DeviceError, match=r"no CUDAExecutionProvider here, only .*CPUExecutionProvider; use the CPU"):
        load_predictor(path, device="cuda")


def test_missing_file_names_itself_and_the_stage(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"absent\.onnx is missing; run the export stage"):
        load_predictor(tmp_path / "absent.onnx")


def test_folder_in_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_predictor(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a model" * 99], ids=["empty", "text"])
def test_damaged_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.onnx is damaged: .*export it again"):
        load_predictor(tmp_path / "model.onnx")


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.99])
def test_truncated_file_is_an_error(path: Path, kept: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ArtifactError):
        load_predictor(path)


def test_file_above_two_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)  # sparse: takes no space
    with pytest.raises(ArtifactError, match="too large for an ONNX file: 2147483648 bytes"):
        load_predictor(path)


def external(name: str, location: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros((), dtype=np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def test_tensor_kept_in_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(4))
    model = colour_model()
    model.graph.initializer[1].CopyFrom(external("weight", "secret"))
    with pytest.raises(ArtifactError, match=r"does not stand alone .*tensor in another file: weight"):
        load_predictor(write(tmp_path / "model.onnx", model))


@pytest.mark.parametrize(
    ("node", "found"),
    [
        (helper.make_node("Constant", [], ["out"], value=external("hidden", "/etc/passwd")), "another file: hidden"),
        (helper.make_node("Spy", [], ["out"], domain="com.example"), r"outside ONNX: com\.example\.Spy"),
    ],
    ids=["tensor", "operator"],
)
def test_foreign_part_hidden_in_a_branch_is_refused(tmp_path: Path, node: onnx.NodeProto, found: str) -> None:
    model = colour_model()
    branch = helper.make_graph([node], "branch", [], [helper.make_tensor_value_info("out", TensorProto.FLOAT, [])])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    model.graph.node.append(helper.make_node("If", ["always"], ["unused"], then_branch=branch, else_branch=branch))
    with pytest.raises(ArtifactError, match=found):
        load_predictor(write(tmp_path / "model.onnx", model))


def test_operator_of_another_domain_is_refused_by_name(tmp_path: Path) -> None:
    model = colour_model()
    model.graph.node[2].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(ArtifactError, match=r"operator outside ONNX: com\.example\.Mul"):
        load_predictor(write(tmp_path / "model.onnx", model))


def test_model_function_is_refused_by_name(tmp_path: Path) -> None:
    model = colour_model()
    body = [helper.make_node("Identity", ["a"], ["b"])]
    model.functions.append(helper.make_function("local", "Same", ["a"], ["b"], body, [helper.make_opsetid("", 20)]))
    with pytest.raises(ArtifactError, match=r"model function: local\.Same"):
        load_predictor(write(tmp_path / "model.onnx", model))


def test_graph_that_cannot_run_is_an_error(tmp_path: Path) -> None:
    model = colour_model()
    model.graph.node[2].op_type = "NoSuchOperator"
    with pytest.raises(ArtifactError, match=r"ONNX Runtime refuses it .*NoSuchOperator"):
        load_predictor(write(tmp_path / "model.onnx", model))


def with_fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1


def with_float_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def with_other_name(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "pixel_values"


@pytest.mark.parametrize("change", [with_fixed_batch, with_float_input, with_other_name])
def test_file_with_another_interface_is_refused(tmp_path: Path, change: object) -> None:
    model = colour_model()
    assert callable(change)
    change(model)
    with pytest.raises(ArtifactError, match="expected uint8 'image'"):
        load_predictor(write(tmp_path / "model.onnx", model))


@pytest.mark.parametrize("classes", [None, '["a", "b"]', '"abc"'])
def test_class_names_that_do_not_fit_are_refused(tmp_path: Path, classes: str | None) -> None:
    model = colour_model()
    helper.set_model_props(model, {} if classes is None else {"classes": classes})
    with pytest.raises(ArtifactError, match="has 3 logits, and its metadata has the classes"):
        load_predictor(write(tmp_path / "model.onnx", model))


def test_measuring_files_needs_nothing_of_torch(path: Path) -> None:
    """Evaluate, compare, time and select where torch is a name without content."""
    script = f"""
        import sys, types
        from pathlib import Path
        # Shape annotations name torch.Tensor; nothing else of torch exists here.
        torch = sys.modules["torch"] = types.ModuleType("torch")
        torch.Tensor = type("Tensor", (), {{}})
        import numpy as np
        from compress.benchmark import BenchmarkSettings, benchmark
        from compress.deploy import write_deploy_folder
        from compress.evaluate import evaluate
        from compress.parity import assert_parity
        from compress.runtime import load_predictor
        from compress.select import select
        predictor = load_predictor(Path({str(path)!r}))
        images = np.eye(3, dtype=np.uint8)[:, None, None].repeat({SIZE[0]}, 1).repeat({SIZE[1]}, 2)
        scores, _ = evaluate(predictor, [(images, np.arange(3))], num_classes={len(CLASSES)})
        assert scores.accuracy_top1 == 1.0
        assert_parity(predictor, predictor, images, tolerance=1e-9)
        benchmark({{"it": predictor}}, images, settings=BenchmarkSettings(min_seconds=0))
        assert [name for name in sys.modules if name.startswith(("torch", "timm", "PIL"))] == ["torch"]
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
