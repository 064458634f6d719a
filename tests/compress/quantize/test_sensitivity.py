"""The order in which layers suffer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compress.data.prepared import ArraySplit
from compress.errors import DataError
from compress.quantize import Int8Static
from compress.quantize.source import layers
from tests.compress.quantize.conftest import Trained, calibration

PER_TENSOR = Int8Static(per_channel=False)


@pytest.fixture(scope="module")
def poisoned(cnn: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network with one weight of its second convolution 100 times as large as the others: one scale for all of
    them rounds the rest away."""
    model = onnx.load(cnn.path)
    weight = layers(model.graph)[1].weight
    values = numpy_helper.to_array(weight).copy()
    values[0, 0, 0, 0] = 100 * np.abs(values).max()
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    path = tmp_path_factory.mktemp("poisoned") / "float32.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_the_poisoned_layer_comes_first(poisoned: Path, train_split: ArraySplit) -> None:
    second = layers(onnx.load(poisoned).graph)[1].name
    alone = PER_TENSOR.sensitivities(poisoned, calibration(train_split))
    assert alone[0].node == second
    assert alone[0].error > 3 * alone[1].error
    spared = PER_TENSOR.sensitivities(poisoned, calibration(train_split), mode="all_but_this")
    assert spared[0].node == second
    assert spared[0].error < spared[1].error / 3, "all but the poisoned layer is nearly float32"


def test_all_layers_are_ranked_and_the_order_repeats(cnn: Trained, train_split: ArraySplit) -> None:
    first = Int8Static().sensitivities(cnn.path, calibration(train_split))
    assert {layer.node for layer in first} == {layer.name for layer in layers(onnx.load(cnn.path).graph)}
    assert [layer.error for layer in first] == sorted((layer.error for layer in first), reverse=True)
    assert all(0 < layer.error < 0.1 and layer.agreement > 0.9 for layer in first)
    assert first == Int8Static().sensitivities(cnn.path, calibration(train_split, batch_size=7))


def test_no_images_is_an_error(cnn: Trained) -> None:
    with pytest.raises(DataError, match="no calibration images"):
        Int8Static().sensitivities(cnn.path, [])
