"""What a quantiser is: settings that turn a float32 ONNX file into a smaller one."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import UInt8
from onnx import ModelProto
from pydantic import JsonValue

from compress.export.exported import ExportedModel, write_exported
from compress.fingerprint import file_sha256
from compress.quantize.source import read_float32
from compress.settings import NonNegativeInt, PositiveInt, Settings

# Without axis names: those would have to be the same in all batches, and the last one may be smaller.
CalibrationImages = Iterable[UInt8[np.ndarray, "_ _ _ 3"]]
"""Batches of stored pixels, of any size; read once."""


class QuantizedFile(Settings):
    """What was written."""

    form: str
    """The quantiser's label; also in the file's metadata."""
    size_bytes: PositiveInt
    sha256: str
    source_sha256: str
    """Of the float32 file it was made of."""
    num_calibration_images: NonNegativeInt
    """Images that activations were observed on; 0 for forms that need none."""
    excluded_nodes: tuple[str, ...]
    """Layers that stayed in float32, by the names of their nodes."""


@final
@dataclass(frozen=True)
class Converted:
    """A model in its new form, not yet written."""

    model: ModelProto = field(repr=False)
    num_calibration_images: int = 0
    excluded_nodes: tuple[str, ...] = ()


class Quantizer(Settings, ABC):
    """Fields say how; calling it makes the file."""

    @property
    def label(self) -> str:
        """Name of the form: the quantiser's name and every setting that is not the default; fit for a file name."""
        return _label(self)

    @abstractmethod
    def convert(self, source: ExportedModel, calibration: CalibrationImages) -> Converted:
        """The source's graph in the new form."""

    @final
    def __call__(self, source: Path, destination: Path, *, calibration: CalibrationImages = ()) -> QuantizedFile:
        """Write `source`, a float32 file of `export_onnx`, in this form to `destination`.

        Inputs, outputs and metadata stay; `form` and `quantization` are added. Same source, images and settings give
        the same bytes. Forms that need no calibration do not touch the images.

        Raises:
            ArtifactError: the source is missing or damaged, or the destination cannot be written.
            ModelError: the source is not a float32 file, or this form cannot be made of it.
            DataError: there are no calibration images, and this form needs some.
        """
        exported = read_float32(source)
        converted = self.convert(exported, calibration)
        facts: dict[str, JsonValue] = {
            "settings": self.model_dump(mode="json"),
            "num_calibration_images": converted.num_calibration_images,
            "excluded_nodes": list(converted.excluded_nodes),
            "source_sha256": exported.sha256,
        }
        write_exported(
            destination, converted.model, made_of=exported, metadata={"form": self.label, "quantization": facts}
        )
        return QuantizedFile(
            form=self.label,
            size_bytes=destination.stat().st_size,
            sha256=file_sha256(destination),
            source_sha256=exported.sha256,
            num_calibration_images=converted.num_calibration_images,
            excluded_nodes=converted.excluded_nodes,
        )


def _label(settings: Settings) -> str:
    """The name, then each other setting that was changed."""
    parts: list[str] = [str(settings.model_dump()["name"])]
    for name, info in type(settings).model_fields.items():
        value: Any = getattr(settings, name)
        if name == "name" or value == info.get_default(call_default_factory=True, validated_data={}):
            continue
        match value:
            case True:
                parts.append(name)
            case False:
                parts.append(f"not_{name}")
            case Settings():
                parts.append(_label(value))
            case tuple() | list():
                digest = hashlib.sha256(json.dumps(list(value)).encode()).hexdigest()
                parts.append(f"{name}_{digest[:8]}")
            case _:
                parts.append(f"{name}_{value}")
    return re.sub(r"[^a-z0-9]+", "_", "_".join(parts).lower())
