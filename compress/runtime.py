"""Exported files, ready to answer. Works without torch.

A file is read once, looked at before anything runs it, and handed to ONNX Runtime as bytes, so that what was checked
is what runs and no second file can be opened.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, final

import numpy as np
import onnxruntime as ort
from jaxtyping import Float32
from pydantic import JsonValue

from compress.errors import ArtifactError, DeviceError
from compress.onnx_session import CURE, class_names, interface, open_session, read_file, read_metadata
from compress.onnx_structure import parts_from_elsewhere

# As in compress.types, which imports torch.
LogitArray = Float32[np.ndarray, "B C"]

MAX_BYTES = 2**31 - 1
"""One protobuf message holds no more."""

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@final
@dataclass(frozen=True, eq=False)
class OnnxPredictor:
    """An exported file, loaded: images uint8 (B H W 3) in, logits float32 (B C) out. Made by `load_predictor`."""

    metadata: dict[str, JsonValue]
    """What the exporter wrote, parsed; text that is no JSON (quantisers leave some) stays text."""
    classes: tuple[str, ...]
    """Names in the order of the logits."""
    image_size: tuple[int, int]
    """Height and width in pixels."""
    size_bytes: int
    """Of the file."""
    sha256: str
    """Of the file."""
    _session: ort.InferenceSession = field(repr=False)

    def __call__(self, images: np.ndarray, /) -> LogitArray:
        """Raw images in, logits out.

        Raises:
            ValueError: the images have another type or shape than the file takes.
        """
        height, width = self.image_size
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (height, width, 3):
            raise ValueError(
                f"expected uint8 images of shape (batch, {height}, {width}, 3), got {images.dtype} {images.shape}"
            )
        (logits,) = self._session.run(["logits"], {"image": images})
        assert isinstance(logits, np.ndarray)
        return logits


def load_predictor(path: Path, *, threads: int = 1, device: Literal["cpu", "cuda"] = "cpu") -> OnnxPredictor:
    """Load an exported file; `threads` compute inside one call.

    Raises:
        ArtifactError: the file is missing, damaged, not self-contained, or not one that `export_onnx` wrote.
        DeviceError: CUDA was asked for, and ONNX Runtime has none here.
    """
    content = read_file(path, max_bytes=MAX_BYTES)
    _refuse_foreign_parts(path, content)
    session = _session(path, content, threads=threads, provider=PROVIDERS[device])
    height, width, num_logits = interface(path, session)
    metadata: dict[str, JsonValue] = read_metadata(session)
    return OnnxPredictor(
        metadata=metadata,
        classes=class_names(path, metadata, num_logits),
        image_size=(height, width),
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        _session=session,
    )


def _refuse_foreign_parts(path: Path, content: bytes) -> None:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ArtifactError(f"{path} is damaged: no ONNX model ({error}); {CURE}") from error
    elsewhere = parts_from_elsewhere(model)
    if elsewhere:
        raise ArtifactError(f"{path} does not stand alone ({'; '.join(elsewhere)}); {CURE} as one file")


def _session(path: Path, content: bytes, *, threads: int, provider: str) -> ort.InferenceSession:
    if provider not in ort.get_available_providers():
        available = ", ".join(ort.get_available_providers())
        raise DeviceError(f"ONNX Runtime has no {provider} here, only {available}; use the CPU")
    session = open_session(path, content, threads=threads, provider=provider)
    if session.get_providers()[0] != provider:
        raise DeviceError(f"ONNX Runtime could not start {provider} and took {session.get_providers()[0]} instead")
    return session
