"""Tensors of the Open Inference Protocol are read exactly, or refused with a reason."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from compress.serve import ServedModel
from compress.serve.errors import RequestError
from compress.serve.inference_protocol import Inference, format_answer, parse_request
from tests.compress.deployed_student import CLASSES, SIZE

MAX_IMAGES = 3
IMAGES = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
LOGITS = np.array([[1.5, -2, 3e-7, 0.1], [4, 5, 6, 7]], dtype=np.float32)


def request(**changes: Any) -> dict[str, Any]:
    """A good request, with changes to its input."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(IMAGES.shape), "data": IMAGES.ravel().tolist()}
    return {"inputs": [{key: value for key, value in {**tensor, **changes}.items() if value is not None}]}


def parse(model: ServedModel, body: Any, *, raw: bytes | None = None, header_length: int | None = None) -> Inference:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    if raw is not None:
        text, header_length = text + raw, len(text) if header_length is None else header_length
    return parse_request(text, header_length=header_length, model=model, max_images=MAX_IMAGES)


@pytest.mark.parametrize("data", [IMAGES.tolist(), IMAGES.ravel().tolist()], ids=["nested", "flat"])
def test_json_pixels_arrive_as_they_were_sent(model: ServedModel, data: list[Any]) -> None:
    inference = parse(model, {**request(data=data), "id": "a1"})
    assert inference.images.dtype == np.uint8
    np.testing.assert_array_equal(inference.images, IMAGES)
    assert inference.id == "a1"
    assert not inference.binary_output


def test_raw_pixels_arrive_as_they_were_sent(model: ServedModel) -> None:
    raw = IMAGES.tobytes()
    inference = parse(model, request(data=None, parameters={"binary_data_size": len(raw)}), raw=raw)
    np.testing.assert_array_equal(inference.images, IMAGES)


def test_what_the_protocol_allows_beside_the_input_is_ignored(model: ServedModel) -> None:
    body = {**request(parameters={"content_type": "np"}), "parameters": {"trace": 1}, "outputs": [{"name": "logits"}]}
    np.testing.assert_array_equal(parse(model, {**body, "unknown": []}).images, IMAGES)


@pytest.mark.parametrize(
    ("wishes", "binary"),
    [
        ({}, False),
        ({"parameters": {"binary_data_output": True}}, True),
        ({"outputs": [{"name": "logits", "parameters": {"binary_data": True}}]}, True),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "logits", "parameters": {"binary_data": False}}],
            },
            False,
        ),
    ],
)
def test_client_chooses_the_form_of_the_answer(model: ServedModel, wishes: dict[str, Any], binary: bool) -> None:
    assert parse(model, {**request(), **wishes}).binary_output is binary


def test_json_answer_holds_every_bit(model: ServedModel) -> None:
    content, header_length = format_answer(Inference("a1", IMAGES, binary_output=False), LOGITS, model)
    assert header_length is None
    output = {"name": "logits", "datatype": "FP32", "shape": [2, 4]}
    answer = json.loads(content)
    data = answer["outputs"][0].pop("data")
    assert answer == {"model_name": "tiny", "model_version": model.version, "id": "a1", "outputs": [output]}
    np.testing.assert_array_equal(np.array(data, dtype=np.float32).reshape(2, 4), LOGITS)


def test_raw_answer_holds_every_bit(model: ServedModel) -> None:
    content, header_length = format_answer(Inference(None, IMAGES, binary_output=True), LOGITS, model)
    assert header_length is not None
    answer = json.loads(content[:header_length])
    assert "id" not in answer
    assert answer["outputs"][0]["parameters"] == {"binary_data_size": 32}
    np.testing.assert_array_equal(np.frombuffer(content[header_length:], dtype="<f4").reshape(2, 4), LOGITS)


def refusal(model: ServedModel, body: Any, **binary: Any) -> str:
    with pytest.raises(RequestError) as caught:
        parse(model, body, **binary)
    assert caught.value.status == 400
    assert "\n" not in caught.value.message
    cause = caught.value.__cause__
    assert not isinstance(cause, ValidationError) or cause.error_count() < 20, "a million wrong items are one error"
    return f"{caught.value.code}: {caught.value.message}"


ONE = [1, SIZE, SIZE, 3]
NUM = SIZE * SIZE * 3


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"datatype": "FP32"}, "wrong_datatype: the model takes UINT8"),
        ({"datatype": "UINT8 "}, "wrong_datatype"),
        ({"datatype": 8}, "malformed_request: inputs.0.datatype"),
        ({"name": "input"}, "the model's input is called 'image'"),
        ({"shape": [2, 3, SIZE, SIZE]}, f"wrong_shape: shape is [2, 3, 24, 24], the model takes [batch, {SIZE}, "),
        ({"shape": [2 * NUM]}, "wrong_shape"),
        ({"shape": [SIZE, SIZE, 3]}, "wrong_shape"),
        ({"shape": []}, "wrong_shape: shape is []"),
        ({"shape": [0, SIZE, SIZE, 3], "data": []}, "a request holds 1 to 3 images"),
        ({"shape": [4, SIZE, SIZE, 3]}, "a request holds 1 to 3 images"),
        ({"shape": [10**30, SIZE, SIZE, 3]}, "[..., 24, 24, 3]"),
        ({"shape": [-1, SIZE, SIZE, 3]}, "inputs.0.shape.0"),
        ({"shape": [2.0, SIZE, SIZE, 3]}, "inputs.0.shape.0"),
        ({"shape": ["2", SIZE, SIZE, 3]}, "inputs.0.shape.0"),
        ({"shape": [1] * 10}, "[1, 1, 1, 1, 1, 1, ...]"),
        ({"shape": [1] * 100_000}, "inputs.0.shape: List should have at most 16 items"),
        ({"shape": [1, SIZE, SIZE, 3]}, f"wrong_shape: data has {2 * NUM} values, the shape says {NUM}"),
        ({"data": None}, "neither data nor a binary_data_size"),
        ({"data": "AAAA"}, "neither data nor"),
        ({"shape": ONE, "data": [256] * NUM}, "wrong_value: data holds a number outside 0 to 255"),
        ({"shape": ONE, "data": [-1] * NUM}, "wrong_value"),
        ({"shape": ONE, "data": [10**40] * NUM}, "wrong_value"),
        ({"shape": ONE, "data": [1.0] * NUM}, "wrong_value: data holds something else than whole numbers"),
        ({"shape": ONE, "data": [float("nan")] * NUM}, "wrong_value"),
        ({"shape": ONE, "data": [float("inf")] + [0] * (NUM - 1)}, "wrong_value"),
        ({"shape": ONE, "data": [True] * NUM}, "wrong_value"),
        ({"shape": ONE, "data": ["1"] * NUM}, "wrong_value"),
        ({"shape": ONE, "data": ["x" * 100_000] + ["y"] * (NUM - 1)}, "wrong_value"),
        ({"shape": ONE, "data": [None] * NUM}, "wrong_value"),
        ({"data": IMAGES.reshape(2, 3, SIZE, SIZE).tolist()}, "nested in another way"),
        ({"data": [IMAGES[0].tolist(), IMAGES[1, 1:].tolist()]}, "nested in another way"),
        ({"data": [IMAGES[0].tolist(), 5]}, "nested in another way"),
        ({"data": [[]]}, "nested in another way"),
    ],
)
def test_wrong_input_is_refused_with_its_reason(model: ServedModel, changes: dict[str, Any], told: str) -> None:
    assert told in refusal(model, request(**changes))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"null",
        b"[]",
        b"{}",
        b'{"inputs": []}',
        b'{"inputs": {}}',
        b'{"inputs": [1]}',
        b"\xff\xfe",
        b'{"inputs"' * 100_000,
        b"[" * 1_000_000,
        b'{"a":' * 500_000,
        b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1' + b"0" * 100_000 + b"]}]}",
        json.dumps({"inputs": request()["inputs"] * 2}).encode(),
        b'{"inputs": [' + b"[]," * 1_000_000 + b"[]]}",
        b'{"inputs": [' + b"{}," * 1_000_000 + b"{}]}",
        b'{"inputs": [], "outputs": [' + b"1," * 1_000_000 + b"1]}",
        b'{"inputs": [{"shape": [' + b'"1",' * 1_000_000 + b'"1"]}]}',
        json.dumps({**request(), "id": 5}).encode(),
        json.dumps({**request(), "id": "x" * 1000}).encode(),
        json.dumps({**request(), "outputs": [{"name": "probs"}]}).encode(),
    ],
    ids=range(21),
)
def test_what_is_no_request_is_refused(model: ServedModel, body: bytes) -> None:
    message = refusal(model, body)
    assert message.startswith("malformed_request")
    assert len(message) < 300


def test_raw_tensor_must_be_as_long_as_its_shape_says(model: ServedModel) -> None:
    raw = IMAGES.tobytes()
    announced = request(data=None, parameters={"binary_data_size": len(raw)})
    assert f"must both be {len(raw)}" in refusal(model, announced, raw=raw[:-1])
    assert f"must both be {len(raw)}" in refusal(model, announced, raw=raw + b"x")
    assert "is Inference-Header-Content-Length set?" in refusal(model, announced)
    for size in (-1, 1, 10**30, "5", 5.0, True):
        wrong = request(data=None, parameters={"binary_data_size": size})
        assert "must both be" in refusal(model, wrong, raw=raw)


def test_raw_bytes_that_nobody_announced_are_refused(model: ServedModel) -> None:
    assert "3 bytes follow the JSON" in refusal(model, request(), raw=b"abc")
    both = request(parameters={"binary_data_size": IMAGES.nbytes})
    assert "both data and a binary_data_size" in refusal(model, both, raw=IMAGES.tobytes())


def test_header_length_beyond_the_body_is_refused(model: ServedModel) -> None:
    assert "the body has" in refusal(model, request(), raw=b"", header_length=10**9)


def test_class_count_of_the_student_is_that_of_its_labels(model: ServedModel) -> None:
    assert len(model.classes) == len(CLASSES)
