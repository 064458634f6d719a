"""Which layers lose most when they become integers, measured by quantising one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnxruntime as ort
from onnx import ModelProto

from compress.evaluate import agreement
from compress.export.exported import ExportedModel
from compress.quantize.calibration import FloatRange
from compress.quantize.qdq import Scheme, quantized_model
from compress.quantize.source import layers
from compress.settings import Fraction, NonNegativeFloat, Settings
from compress.types import ImageArray, LogitArray

Mode = Literal["only_this", "all_but_this"]


class LayerSensitivity(Settings):
    """What quantising, or sparing, one layer does to the logits."""

    node: str
    """Name of the layer's node; what `excluded_nodes` takes."""
    operator: str
    error: NonNegativeFloat
    """Root mean square change of the logits, as a fraction of their own root mean square."""
    agreement: Fraction
    """Share of images with the same answer as in float32."""


def sensitivity(
    source: ExportedModel,
    scheme: Scheme,
    ranges: Mapping[str, FloatRange],
    images: ImageArray,
    *,
    mode: Mode = "only_this",
) -> tuple[LayerSensitivity, ...]:
    """All layers, the most harmful first; of equal ones the earlier in the graph.

    `only_this` quantises one layer and leaves the rest in float32: its own error. `all_but_this` quantises everything
    else: what sparing it would leave of the whole error, so here the most harmful layer has the smallest error.

    Cost: for L layers, L conversions (0.1 to 1 s each) and L + 1 forward passes over the images. Nothing is random.
    """
    graph = source.model.graph
    expected = _answers(source.model, images)
    names = [layer.name for layer in layers(graph)]
    found: list[LayerSensitivity] = []
    for layer in layers(graph):
        if mode == "only_this":
            model = quantized_model(source, scheme, ranges, only=[layer.name])
        else:
            model = quantized_model(source, scheme, ranges, excluded=[layer.name])
        given = _answers(model, images)
        found.append(
            LayerSensitivity(
                node=layer.name,
                operator=layer.node.op_type,
                error=_relative_error(given, expected),
                agreement=agreement(given, expected),
            )
        )
    sign = -1 if mode == "only_this" else 1
    return tuple(sorted(found, key=lambda each: (sign * each.error, names.index(each.node))))


def _answers(model: ModelProto, images: ImageArray) -> LogitArray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": images})
    return np.asarray(logits, dtype=np.float32)


def _relative_error(given: LogitArray, expected: LogitArray) -> float:
    difference = given.astype(np.float64) - expected
    scale = float(np.sqrt(np.mean(np.square(expected.astype(np.float64)))))
    return float(np.sqrt(np.mean(np.square(difference)))) / max(scale, float(np.finfo(np.float32).tiny))
