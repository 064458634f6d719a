"""Matrix products whose activations are rounded as they come."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest

from compress.errors import ModelError
from compress.quantize import Int8Dynamic
from compress.quantize.fusion import fusion
from compress.runtime import load_predictor
from tests.compress.quantize.conftest import Trained
from tests.compress.quantize.test_weight_only import FEATURES, OUTPUTS, product_file


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_products_become_integers_and_convolutions_stay(cnn: Trained, tmp_path: Path) -> None:
    Int8Dynamic()(cnn.path, tmp_path / "form.onnx")
    found = operators(tmp_path / "form.onnx")
    assert found.count("MatMulInteger") == 1
    assert found.count("Conv") == 3
    assert "Gemm" not in found
    assert fusion(tmp_path / "form.onnx").num_integer == 1


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_excluded_products_stay_in_float(operator: str, tmp_path: Path) -> None:
    source = product_file(tmp_path / "float32.onnx", np.ones((FEATURES, OUTPUTS)), operator=operator)
    Int8Dynamic(excluded_nodes=("two",))(source, tmp_path / "form.onnx")
    assert operators(tmp_path / "form.onnx").count("MatMulInteger") == 2
    kept = {tensor.name for tensor in onnx.load(tmp_path / "form.onnx").graph.initializer}
    assert "weight" in kept
    assert "first" not in kept


def test_no_product_to_quantise_is_an_error(cnn: Trained, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no matrix product that int8_dynamic could quantise; use int8_static"):
        Int8Dynamic(excluded_nodes=("node_linear",))(cnn.path, tmp_path / "form.onnx")


def test_the_quantiser_says_nothing_of_its_own(
    cnn: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        Int8Dynamic()(cnn.path, tmp_path / "form.onnx")
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_per_tensor_weights_have_one_scale(cnn: Trained, tmp_path: Path) -> None:
    Int8Dynamic(per_channel=False)(cnn.path, tmp_path / "form.onnx")
    assert load_predictor(tmp_path / "form.onnx")(np.zeros((1, 8, 8, 3), dtype=np.uint8)).shape == (1, 10)
