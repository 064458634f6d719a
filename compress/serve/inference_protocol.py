"""Tensors of the Open Inference Protocol, version 2, as requests say them and answers say them.

https://github.com/kserve/open-inference-protocol and, for raw tensors beside the JSON, the binary tensor data extension
of https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import json
import math
from itertools import chain
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from compress.serve.errors import RequestError
from compress.serve.model import ImageBatch, LogitBatch, ServedModel

INPUT, OUTPUT = "image", "logits"
INPUT_TYPE, OUTPUT_TYPE = "UINT8", "FP32"
HEADER_LENGTH = "Inference-Header-Content-Length"

Size = Annotated[int, Field(ge=0)]
# Without FailFast, millions of wrong items are millions of errors: 6 GB, and half a minute in which nobody is served.
Sizes = Annotated[list[Size], Field(max_length=16), FailFast()]
Parameters = dict[str, Any]


class _Message(BaseModel):
    # The protocol lets clients add keys that a server does not know.
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class InputTensor(_Message):
    """One input of a request."""

    name: str
    datatype: str
    shape: Sizes
    parameters: Parameters = Field(default_factory=dict)
    data: Any = None


class OutputChoice(_Message):
    """An output that the client asks for."""

    name: str
    parameters: Parameters = Field(default_factory=dict)


class InferRequest(_Message):
    """Body of a request."""

    id: Annotated[str, Field(max_length=256)] | None = None
    parameters: Parameters = Field(default_factory=dict)
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=1), FailFast()]
    outputs: Annotated[list[OutputChoice], Field(max_length=16), FailFast()] = Field(default_factory=list)


class Inference(NamedTuple):
    """A request that passed all checks."""

    id: str | None
    images: ImageBatch
    binary_output: bool


def parse_request(body: bytes, *, header_length: int | None, model: ServedModel, max_images: int) -> Inference:
    """The images in a request; `header_length` is the length of its JSON where raw tensors follow.

    Raises:
        RequestError: it is not a request that this model can answer.
    """
    if header_length is not None and header_length > len(body):
        raise _malformed(f"{HEADER_LENGTH} is {header_length}, the body has {len(body)} bytes")
    raw = b"" if header_length is None else body[header_length:]
    try:
        request = InferRequest.model_validate_json(body if header_length is None else body[:header_length])
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise _malformed(f"{place}: {first['msg']}" if place else first["msg"]) from error
    (tensor,) = request.inputs
    _check_tensor(tensor, model=model, max_images=max_images)
    binary_size = tensor.parameters.get("binary_data_size")
    flat = _from_json(tensor) if binary_size is None else _from_bytes(raw, binary_size, tensor)
    if binary_size is None and raw:
        raise _malformed(f"{len(raw)} bytes follow the JSON, and no input has a binary_data_size")
    return Inference(request.id, flat.reshape(tensor.shape), _wants_binary(request))


def format_answer(inference: Inference, logits: LogitBatch, model: ServedModel) -> tuple[bytes, int | None]:
    """Body of the answer and, where raw tensors follow its JSON, the length of the JSON."""
    output: dict[str, Any] = {"name": OUTPUT, "datatype": OUTPUT_TYPE, "shape": list(logits.shape)}
    answer: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": [output]}
    if inference.id is not None:
        answer["id"] = inference.id
    if not inference.binary_output:
        output["data"] = logits.ravel().tolist()
        return _dump(answer), None
    content = logits.astype("<f4").tobytes()
    output["parameters"] = {"binary_data_size": len(content)}
    header = _dump(answer)
    return header + content, len(header)


def _check_tensor(tensor: InputTensor, *, model: ServedModel, max_images: int) -> None:
    if tensor.name != INPUT:
        raise _malformed(f"the model's input is called '{INPUT}'")
    if tensor.datatype != INPUT_TYPE:
        raise _malformed(
            f"the model takes {INPUT_TYPE} pixels, 0 to 255; it normalises by itself", code="wrong_datatype"
        )
    expected = model.image_shape
    if len(tensor.shape) != 4 or tuple(tensor.shape[1:]) != expected:
        raise _malformed(
            f"shape is {_shown(tensor.shape)}, the model takes [batch, {expected[0]}, {expected[1]}, 3]",
            code="wrong_shape",
        )
    if not 1 <= tensor.shape[0] <= max_images:
        raise _malformed(
            f"shape is {_shown(tensor.shape)}: a request holds 1 to {max_images} images", code="wrong_shape"
        )


def _shown(shape: list[int]) -> str:
    """A shape that a client sent, in few characters."""
    shown = [str(size) if size < 10**12 else "..." for size in shape[:6]]
    return f"[{', '.join(shown)}{', ...' if len(shape) > 6 else ''}]"


def _from_json(tensor: InputTensor) -> np.ndarray:
    if not isinstance(tensor.data, list):
        raise _malformed("the input has neither data nor a binary_data_size")
    values: list[Any] = tensor.data
    if values and isinstance(values[0], list):  # nested as the shape says; otherwise flat, in row-major order
        for size in tensor.shape[1:]:
            if not all(isinstance(part, list) and len(part) == size for part in values):
                raise _malformed("data is nested in another way than the shape says", code="wrong_shape")
            values = list(chain.from_iterable(values))
    expected = math.prod(tensor.shape)
    if len(values) != expected:
        raise _malformed(f"data has {len(values)} values, the shape says {expected}", code="wrong_shape")
    # Whole numbers only: numpy would take true, 1.5 and "1" without a word, and wrap 256 around to 0.
    if set(map(type, values)) != {int}:
        raise _malformed("data holds something else than whole numbers", code="wrong_value")
    try:
        return np.frombuffer(bytes(values), dtype=np.uint8)
    except (ValueError, OverflowError) as error:
        raise _malformed("data holds a number outside 0 to 255", code="wrong_value") from error


def _from_bytes(raw: bytes, size: Any, tensor: InputTensor) -> np.ndarray:
    expected = math.prod(tensor.shape)
    if tensor.data is not None:
        raise _malformed("the input has both data and a binary_data_size")
    if type(size) is not int or size != expected or len(raw) != size:
        raise _malformed(
            f"binary_data_size and the bytes behind the JSON must both be {expected}, as the shape says; "
            f"{len(raw)} bytes came (is {HEADER_LENGTH} set?)"
        )
    return np.frombuffer(raw, dtype=np.uint8)


def _wants_binary(request: InferRequest) -> bool:
    wanted = request.parameters.get("binary_data_output", False)
    for output in request.outputs:
        if output.name != OUTPUT:
            raise _malformed(f"the model's output is called '{OUTPUT}'")
        wanted = output.parameters.get("binary_data", wanted)
    return wanted is True


def _malformed(message: str, *, code: str = "malformed_request") -> RequestError:
    return RequestError(400, code, " ".join(message.split()))


def _dump(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
