"""Half precision throughout: for GPUs. On a CPU it is half as large and slower than float32."""

from __future__ import annotations

from typing import Literal, final

from compress.export.exported import ExportedModel
from compress.export.float_forms import float16_model
from compress.quantize.base import CalibrationImages, Converted, Quantizer


@final
class Float16(Quantizer):
    """float16 weights and arithmetic between a float32 entry and float32 logits."""

    name: Literal["float16"] = "float16"

    def convert(self, source: ExportedModel, calibration: CalibrationImages) -> Converted:
        return Converted(float16_model(source))
