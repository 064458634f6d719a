"""A session opens no file beside the bytes it was made of."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from compress.errors import ArtifactError
from compress.onnx_session import interface, open_session, read_metadata
from tests.compress.onnx_files import SIZE, colour_model


def model_that_reads(location: str) -> onnx.ModelProto:
    """A model whose weight lies in another file."""
    model = colour_model()
    tensor = model.graph.initializer[1]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return model


@pytest.mark.parametrize("location", ["secret", "folder/secret", "../secret", "/etc/passwd", "model.onnx"])
def test_no_file_beside_the_model_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    place = tmp_path / "deploy"
    (place / "folder").mkdir(parents=True)
    for path in (tmp_path / "secret", place / "secret", place / "folder" / "secret"):
        path.write_bytes(bytes(4))
    model = model_that_reads(location).SerializeToString()
    (place / "model.onnx").write_bytes(model)
    monkeypatch.chdir(place)
    with pytest.raises(ArtifactError, match=r"model\.onnx is damaged: ONNX Runtime refuses it .*xternal data"):
        open_session(place / "model.onnx", model, threads=1, provider="CPUExecutionProvider")


def test_session_tells_interface_and_metadata(tmp_path: Path) -> None:
    model = colour_model()
    helper.set_model_props(model, {"classes": '["a", "b", "c"]', "onnx.infer": "onnxruntime.quant"})
    session = open_session(tmp_path / "x", model.SerializeToString(), threads=2, provider="CPUExecutionProvider")
    assert interface(tmp_path / "x", session) == (*SIZE, 3)
    assert read_metadata(session) == {"classes": ["a", "b", "c"], "onnx.infer": "onnxruntime.quant"}
    assert session.get_session_options().intra_op_num_threads == 2
