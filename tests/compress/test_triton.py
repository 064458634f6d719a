"""The Triton repository fits the file in it; one that does not is found out without a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import helper

from compress.errors import ArtifactError
from compress.triton import check_repository, write_repository
from tests.compress.onnx_files import CLASSES, SIZE, colour_model, write_colour_model


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    model = write_colour_model(tmp_path / "model.onnx")
    write_repository(tmp_path / "triton", "colours", model, classes=CLASSES, batching=True)
    return tmp_path / "triton"


def test_repository_has_the_layout_that_triton_reads(repository: Path) -> None:
    files = {path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()}
    assert files == {"colours/config.pbtxt", "colours/labels.txt", "colours/1/model.onnx"}
    assert (repository / "colours" / "labels.txt").read_text() == "red\ngreen\nblue\n"
    assert (repository / "colours" / "1" / "model.onnx").read_bytes() == (repository.parent / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    "told",
    [
        'name: "colours"',
        'backend: "onnxruntime"',
        "max_batch_size: 32",
        f'input {{\n  name: "image"\n  data_type: TYPE_UINT8\n  dims: {SIZE[0]}\n  dims: {SIZE[1]}\n  dims: 3\n}}',
        'output {\n  name: "logits"\n  data_type: TYPE_FP32\n  dims: 3\n  label_filename: "labels.txt"\n}',
        "dynamic_batching {",
        "max_queue_size: 256",
        'key: "intra_op_thread_count"',
    ],
)
def test_configuration_says(repository: Path, told: str) -> None:
    assert told in (repository / "colours" / "config.pbtxt").read_text()


def test_model_whose_answers_depend_on_the_batch_gets_no_batches(tmp_path: Path) -> None:
    model = write_colour_model(tmp_path / "model.onnx")
    write_repository(tmp_path / "triton", "colours", model, classes=CLASSES, batching=False)
    config = (tmp_path / "triton" / "colours" / "config.pbtxt").read_text()
    assert "max_batch_size: 1\n" in config
    assert "dynamic_batching" not in config


def replaced(old: str, new: str) -> Callable[[Path], object]:
    def change(place: Path) -> None:
        config = (place / "config.pbtxt").read_text()
        assert old in config
        (place / "config.pbtxt").write_text(config.replace(old, new))

    return change


def other_size(place: Path) -> None:
    model = colour_model()
    for dim, value in zip(model.graph.input[0].type.tensor_type.shape.dim[1:3], (5, 5), strict=True):
        dim.dim_value = value
    (place / "1" / "model.onnx").write_bytes(model.SerializeToString())


def other_output(place: Path) -> None:
    model = colour_model()
    model.graph.node[-1].output[0] = model.graph.output[0].name = "scores"
    helper.set_model_props(model, {"classes": json.dumps(CLASSES)})
    (place / "1" / "model.onnx").write_bytes(model.SerializeToString())


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "input name": (replaced('name: "image"', 'name: "input"'), "the file has [('image'"),
    "input type": (replaced("TYPE_UINT8", "TYPE_FP32"), "the file has [('image', 'TYPE_UINT8', (4, 6, 3))]"),
    "input shape": (replaced("dims: 6", "dims: 7"), "(4, 6, 3)"),
    "batch in dims": (replaced("dims: 4", "dims: -1\n  dims: 4"), "(-1, 4, 6, 3)"),
    "output": (replaced("TYPE_FP32\n  dims: 3", "TYPE_FP32\n  dims: 4"), "output [('logits', 'TYPE_FP32', (4,))]"),
    "model's name": (replaced('name: "colours"', 'name: "colors"'), "name 'colors'"),
    "backend": (replaced("onnxruntime", "tensorrt"), "backend 'tensorrt'"),
    "no batch axis": (replaced("max_batch_size: 32", "max_batch_size: 0"), "max_batch_size 0"),
    "labels": (lambda place: (place / "labels.txt").write_text("red\ngreen\n"), "number of labels 2"),
    "no labels": (lambda place: (place / "labels.txt").unlink(), "labels.txt cannot be read"),
    "no such field": (replaced("max_batch_size", "max_batches"), "is no Triton configuration"),
    "wrong type of a field": (replaced("max_batch_size: 32", 'max_batch_size: "32"'), "is no Triton configuration"),
    "unknown data type": (replaced("TYPE_UINT8", "UINT8"), "is no Triton configuration"),
    "no text": (lambda place: (place / "config.pbtxt").write_bytes(b"\xff"), "is no Triton configuration"),
    "no configuration": (lambda place: (place / "config.pbtxt").unlink(), "config.pbtxt cannot be read"),
    "another size of images": (other_size, "(5, 5, 3)"),
    "another output": (other_output, "scores"),
    "no model": (lambda place: (place / "1" / "model.onnx").unlink(), "model.onnx cannot be read"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_repository_that_does_not_fit_its_file_is_refused(repository: Path, wrong: str) -> None:
    change, told = WRONG[wrong]
    change(repository / "colours")
    with pytest.raises(ArtifactError) as caught:
        check_repository(repository, "colours")
    assert told in str(caught.value)


@pytest.mark.parametrize(("name", "classes"), [("a b", CLASSES), ("../x", CLASSES), ("ok", ("red", "gr\neen", "blue"))])
def test_names_that_cannot_stand_in_a_repository_are_refused(
    tmp_path: Path, name: str, classes: tuple[str, ...]
) -> None:
    model = write_colour_model(tmp_path / "model.onnx", classes=classes)
    with pytest.raises(ArtifactError, match=r"cannot be a Triton model's name|cannot stand on a line"):
        write_repository(tmp_path / "triton", name, model, classes=classes, batching=True)
    assert not (tmp_path / "triton").exists()


def test_quotes_in_a_configuration_are_escaped_and_read_back(repository: Path) -> None:
    replaced('string_value: "1"', r'string_value: "a \"quoted\" value"')(repository / "colours")
    check_repository(repository, "colours")


def test_configuration_fits_every_opset_of_the_file(tmp_path: Path) -> None:
    model = colour_model()
    model.opset_import[0].version = 18
    onnx.save(model, tmp_path / "model.onnx")
    write_repository(tmp_path / "triton", "colours", tmp_path / "model.onnx", classes=CLASSES, batching=True)
