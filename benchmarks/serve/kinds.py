"""What clients send: the kinds of request whose cost is measured."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from compress.serve import ServedModel
from compress.serve.inference_protocol import HEADER_LENGTH
from compress.types import ImageArray

KINDS = ("png", "jpeg", "tensor", "json")
PHOTO_SIZE = (500, 375)


@dataclass(frozen=True)
class Kind:
    """One request, sent again and again."""

    words: str
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def route(self) -> str:
        """The server's name for where it goes."""
        return "classify" if self.path == "/classify" else "infer"


def every_kind(model: ServedModel) -> dict[str, Kind]:
    """A PNG and a raw tensor of the model's own size, the same tensor in JSON and, where it resizes, a photo."""
    height, width, _ = model.image_shape
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    kinds = {
        "png": Kind(f"PNG, {width} x {height} px", "/classify", encoded(Image.fromarray(pixels[0]), "PNG")),
        "tensor": tensor(model.name, pixels),
        "json": json_tensor(model.name, pixels),
    }
    if model.preprocessing.resize is not None:
        # Noise enlarged: it compresses like a photo, where noise itself would not compress at all.
        photo = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(PHOTO_SIZE)
        words = f"JPEG, {PHOTO_SIZE[0]} x {PHOTO_SIZE[1]} px"
        kinds["jpeg"] = Kind(words, "/classify", encoded(photo, "JPEG"))
    return kinds


def encoded(image: Image.Image, file_format: str) -> bytes:
    """A picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return buffer.getvalue()


def tensor(model: str, pixels: ImageArray) -> Kind:
    """Open Inference Protocol with raw bytes there and back."""
    described = {
        "name": "image",
        "datatype": "UINT8",
        "shape": pixels.shape,
        "parameters": {"binary_data_size": pixels.nbytes},
    }
    head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return Kind(f"raw tensor, {_size(pixels)}", f"/v2/models/{model}/infer", head + pixels.tobytes(), headers)


def json_tensor(model: str, pixels: ImageArray) -> Kind:
    """Open Inference Protocol in JSON there and back."""
    described = {"name": "image", "datatype": "UINT8", "shape": pixels.shape, "data": pixels.ravel().tolist()}
    body = json.dumps({"inputs": [described]}, separators=(",", ":")).encode()
    return Kind(f"JSON tensor, {_size(pixels)}", f"/v2/models/{model}/infer", body)


def _size(pixels: ImageArray) -> str:
    _, height, width, _ = pixels.shape
    return f"{width} x {height} px"
