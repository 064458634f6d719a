"""8-bit weights and activations with ranges measured beforehand: the form for convolutional networks."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Literal, final

import numpy as np
from pydantic import model_validator

from compress.errors import DataError
from compress.export.exported import ExportedModel
from compress.quantize.base import CalibrationImages, Converted, Quantizer
from compress.quantize.calibration import MinMax, Ranges, calibrate
from compress.quantize.qdq import Scheme, Types, quantized_model
from compress.quantize.sensitivity import LayerSensitivity, Mode, sensitivity
from compress.quantize.source import check_excluded, layers, read_float32
from compress.settings import NonNegativeInt
from compress.types import ImageArray

NUM_SENSITIVITY_IMAGES = 64


@final
class Int8Static(Quantizer):
    """Integer convolutions and matrix products, with QuantizeLinear and DequantizeLinear around them."""

    name: Literal["int8_static"] = "int8_static"
    types: Types = "u8s8"
    """Activations, then weights. On x86, u8s8 is fastest with VNNI; u8u8 is exact on every processor and slower; s8s8
    is what GPUs and ARM prefer, and ONNX Runtime on x86 leaves convolutions beside a shortcut in float."""
    per_channel: bool = True
    """A scale for every output channel of a weight, instead of one for all."""
    reduce_range: bool = False
    """Weights in 7 bits: exact on processors without VNNI, a little less accurate everywhere."""
    ranges: Ranges = MinMax()
    """How the range of an activation follows from what was observed."""
    float_ends: bool = False
    """Leave the first and the last layer in float32: closer to the float32 file, a little larger."""
    excluded_nodes: tuple[str, ...] = ()
    """Layers that stay in float32, by the names of their nodes."""
    num_sensitive_excluded: NonNegativeInt = 0
    """Leave as many of the most sensitive layers in float32 besides; measured on the first calibration images."""

    @model_validator(mode="after")
    def _has_an_effect(self) -> Int8Static:
        if self.reduce_range and self.types == "u8u8":
            raise ValueError("reduce_range guards signed weights; u8u8 never overflows: leave it out")
        return self

    @property
    def scheme(self) -> Scheme:
        """How values become integers."""
        return Scheme(self.types, self.per_channel, self.reduce_range)

    def convert(self, source: ExportedModel, calibration: CalibrationImages) -> Converted:
        check_excluded(source, self.excluded_nodes)
        first = _First(calibration, NUM_SENSITIVITY_IMAGES)
        observed = calibrate(source.model, first.passing(), self.ranges)
        excluded = dict.fromkeys(self.excluded_nodes)
        if self.float_ends:
            of_network = layers(source.model.graph)
            excluded |= dict.fromkeys((of_network[0].name, of_network[-1].name))
        if self.num_sensitive_excluded:
            ranked = sensitivity(source, self.scheme, observed.ranges, first.images)
            further = [layer.node for layer in ranked if layer.node not in excluded]
            excluded |= dict.fromkeys(further[: self.num_sensitive_excluded])
        model = quantized_model(source, self.scheme, observed.ranges, excluded=excluded)
        return Converted(model, observed.num_images, tuple(excluded))

    def sensitivities(
        self, source: Path, calibration: CalibrationImages, *, mode: Mode = "only_this"
    ) -> tuple[LayerSensitivity, ...]:
        """Layers of a float32 file by what quantising them costs, the most harmful first; see `sensitivity`.

        Ranges come from all calibration images, errors are measured on the first 64.

        Raises:
            ArtifactError: the file is missing or damaged.
            ModelError: it is not in float32.
            DataError: there are no calibration images.
        """
        exported = read_float32(source)
        first = _First(calibration, NUM_SENSITIVITY_IMAGES)
        observed = calibrate(exported.model, first.passing(), self.ranges)
        return sensitivity(exported, self.scheme, observed.ranges, first.images, mode=mode)


class _First:
    """The first images of a stream that is read once, kept while it passes."""

    def __init__(self, stream: CalibrationImages, count: int) -> None:
        self._stream, self._count = stream, count
        self._kept: list[ImageArray] = []

    def passing(self) -> Generator[ImageArray]:
        """The stream."""
        missing = self._count
        for batch in self._stream:
            if missing > 0:
                self._kept.append(batch[:missing].copy())
                missing -= len(self._kept[-1])
            yield batch

    @property
    def images(self) -> ImageArray:
        if not self._kept:
            raise DataError("no calibration images: give at least one, better 128, of the train split")
        return np.concatenate(self._kept)
