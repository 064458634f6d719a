"""What every quantiser keeps to."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from pydantic import TypeAdapter, ValidationError

from compress.data.prepared import ArraySplit
from compress.errors import ArtifactError, DataError, ModelError
from compress.evaluate import agreement
from compress.fingerprint import file_sha256
from compress.quantize import AnyQuantizer, Float16, Int8Dynamic, Int8Static, Percentile, Quantizer, WeightOnly
from compress.runtime import load_predictor
from tests.compress.onnx_files import colour_model
from tests.compress.quantize.conftest import Trained, calibration

QUANTIZERS = (
    Int8Static(),
    Int8Static(types="s8s8", float_ends=True),
    Int8Static(types="u8u8", per_channel=False),
    Int8Static(reduce_range=True, ranges=Percentile()),
    Int8Dynamic(),
    WeightOnly(),
    WeightOnly(storage="int4"),
    WeightOnly(storage="float16"),
    WeightOnly(storage="bfloat16"),
    Float16(),
)
every_quantizer = pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda each: each.label)


@pytest.fixture
def form(quantizer: Quantizer, cnn: Trained, train_split: ArraySplit, tmp_path: Path) -> Path:
    path = tmp_path / "form.onnx"
    quantizer(cnn.path, path, calibration=calibration(train_split))
    return path


@every_quantizer
def test_answers_are_nearly_those_of_float32(form: Path, cnn: Trained, validation_images: np.ndarray) -> None:
    expected, given = load_predictor(cnn.path)(validation_images), load_predictor(form)(validation_images)
    # The worst here, 4-bit weights, changes 2 answers of 100; rounding the wrong layer or axis changes most of them.
    assert agreement(expected, given) > 0.95


@every_quantizer
def test_file_is_smaller(form: Path, cnn: Trained, quantizer: Quantizer) -> None:
    # The only matrix product here has 320 weights: rounding it saves fewer bytes than the nodes for it take.
    allowed = 1.02 if isinstance(quantizer, Int8Dynamic) else 0.65
    assert form.stat().st_size < allowed * cnn.path.stat().st_size


@every_quantizer
def test_interface_and_metadata_are_kept_and_the_form_is_named(form: Path, cnn: Trained, quantizer: Quantizer) -> None:
    before, after = load_predictor(cnn.path), load_predictor(form)
    assert (after.classes, after.image_size) == (before.classes, before.image_size)
    added = {key: value for key, value in after.metadata.items() if key not in before.metadata}
    assert {key: after.metadata[key] for key in before.metadata} == before.metadata
    assert set(added) == {"form", "quantization"}
    assert added["form"] == quantizer.label
    assert added["quantization"]["source_sha256"] == before.sha256
    assert TypeAdapter(AnyQuantizer).validate_python(added["quantization"]["settings"]) == quantizer


@every_quantizer
def test_same_source_and_images_give_the_same_bytes(
    quantizer: Quantizer, form: Path, cnn: Trained, train_split: ArraySplit, tmp_path: Path
) -> None:
    again = quantizer(cnn.path, tmp_path / "again.onnx", calibration=calibration(train_split, batch_size=11))
    assert (tmp_path / "again.onnx").read_bytes() == form.read_bytes()
    assert again.sha256 == file_sha256(form)


@every_quantizer
def test_file_stands_alone_in_the_operators_of_its_source(form: Path) -> None:
    model = onnx.load(form)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert model.ir_version == 9
    assert [entry.name for entry in form.parent.iterdir()] == ["form.onnx"]


@every_quantizer
def test_answers_any_batch_size(form: Path, validation_images: np.ndarray) -> None:
    predict = load_predictor(form)
    assert [predict(validation_images[:size]).shape for size in (1, 2, 7)] == [(1, 10), (2, 10), (7, 10)]


@every_quantizer
def test_quantised_files_are_refused_as_sources(
    quantizer: Quantizer, form: Path, train_split: ArraySplit, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"form\.onnx holds .* already; make every form of the float32 file"):
        quantizer(form, tmp_path / "twice.onnx", calibration=calibration(train_split))
    assert not (tmp_path / "twice.onnx").exists()


def test_labels_are_unique_file_names_that_say_what_was_changed() -> None:
    labels = [quantizer.label for quantizer in QUANTIZERS]
    assert len(set(labels)) == len(labels)
    assert all(re.fullmatch(r"[a-z0-9_]+", label) for label in labels)
    assert labels[:4] == [
        "int8_static",
        "int8_static_types_s8s8_float_ends",
        "int8_static_types_u8u8_not_per_channel",
        "int8_static_reduce_range_percentile",
    ]
    assert Int8Static(excluded_nodes=("a",)).label != Int8Static(excluded_nodes=("b",)).label
    assert Int8Static(ranges=Percentile(percentile=99.9)).label == "int8_static_percentile_percentile_99_9"


def test_settings_name_the_quantiser() -> None:
    adapter = TypeAdapter(AnyQuantizer)
    assert adapter.validate_python({"name": "weight_only", "storage": "int4"}) == WeightOnly(storage="int4")
    with pytest.raises(ValidationError, match="int7"):
        adapter.validate_python({"name": "int7"})
    with pytest.raises(ValidationError, match="reduce_range guards signed weights"):
        Int8Static(types="u8u8", reduce_range=True)


def test_static_quantisation_without_images_is_an_error(cnn: Trained, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no calibration images: give at least one"):
        Int8Static()(cnn.path, tmp_path / "form.onnx")
    with pytest.raises(DataError, match="no calibration images"):
        Int8Static()(cnn.path, tmp_path / "form.onnx", calibration=iter([]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("quantizer", [Int8Static(), Int8Dynamic(), WeightOnly()], ids=lambda each: each.label)
def test_excluding_a_layer_that_is_not_there_names_those_that_are(
    quantizer: Int8Static | Int8Dynamic | WeightOnly, cnn: Trained, train_split: ArraySplit, tmp_path: Path
) -> None:
    chosen = quantizer.model_copy(update={"excluded_nodes": ("conv7",)})
    with pytest.raises(ModelError, match=r"has no layer conv7; its layers are node_Conv_\d+, .*node_linear"):
        chosen(cnn.path, tmp_path / "form.onnx", calibration=calibration(train_split))


def test_missing_and_damaged_sources_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"nothing\.onnx is missing; run the export stage first"):
        Float16()(tmp_path / "nothing.onnx", tmp_path / "form.onnx")
    (tmp_path / "damaged.onnx").write_bytes(b"not a model")
    with pytest.raises(ArtifactError, match=r"damaged\.onnx is damaged: no ONNX model"):
        Float16()(tmp_path / "damaged.onnx", tmp_path / "form.onnx")


def test_foreign_operators_and_interfaces_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "foreign.onnx"
    model = colour_model()
    model.opset_import[0].version = 23
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"operator sets \{'': 23\}.*export it again with export\.opset: 20"):
        Float16()(path, tmp_path / "form.onnx")
    model = colour_model()
    model.graph.output[0].name = model.graph.node[-1].output[0] = "scores"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match="expected uint8 'image'"):
        Float16()(path, tmp_path / "form.onnx")


def test_a_source_without_names_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "nameless.onnx"
    path.write_bytes(colour_model().SerializeToString())
    with pytest.raises(ModelError, match="nodes without a name of their own"):
        Float16()(path, tmp_path / "form.onnx")


def test_a_folder_that_cannot_be_written_is_an_error(cnn: Trained, tmp_path: Path) -> None:
    (tmp_path / "form.onnx").mkdir()
    with pytest.raises(ArtifactError, match=r"cannot write .*form\.onnx: .*; choose a writable folder"):
        Float16()(cnn.path, tmp_path / "form.onnx")


def test_metadata_stays_readable_text(cnn: Trained, tmp_path: Path) -> None:
    Float16()(cnn.path, tmp_path / "form.onnx")
    texts = {entry.key: entry.value for entry in onnx.load(tmp_path / "form.onnx").metadata_props}
    assert json.loads(texts["quantization"])["num_calibration_images"] == 0
