"""The 8-bit file of a network that was trained with its rounding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from compress.export import ExportSettings, export_onnx
from compress.quantize.fusion import Fusion, fusion
from compress.quantize.qat import QatNetwork

FORM = "int8_qat"


def export_quantization_aware(
    network: QatNetwork,
    path: Path,
    *,
    image_size: tuple[int, int],
    settings: ExportSettings,
    metadata: Mapping[str, JsonValue],
) -> Fusion:
    """Write a trained network as an 8-bit ONNX file, as `export_onnx` writes others.

    Returns:
        Which of its layers ONNX Runtime runs as integers; all, but for a convolution that gives the logits.

    Raises:
        ModelError: the network cannot be exported.
        ArtifactError: the file cannot be written.
        ValueError: the class names are missing or are not as many as the logits.
    """
    export_onnx(
        network.deployable(),
        path,
        image_size=image_size,
        settings=settings,
        metadata={**metadata, "form": FORM, "quantization": network.facts},
    )
    return fusion(path)
