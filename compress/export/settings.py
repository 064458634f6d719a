"""How networks are exported and how closely the files must agree with them."""

from __future__ import annotations

from typing import Literal

from compress.settings import PositiveFloat, PositiveInt, Settings

Opset = Literal[18, 19, 20]


class ReducedTolerances(Settings):
    """Largest error allowed between a network and its smaller forms, as a fraction of the largest logit.

    It finds files that are broken; whether a form is accurate enough, its accuracy says.
    """

    float16: PositiveFloat = 0.02
    """`float16`, and `weight_only` in 16 bits; 1e-3 to 5e-3 is usual."""
    int8: PositiveFloat = 0.25
    """8 bits, static, dynamic, trained with rounding or weights only; 0.02 to 0.1 is usual."""
    int4: PositiveFloat = 0.5
    """`weight_only` in 4 bits."""


class ExportSettings(Settings):
    """From a trained network to an ONNX file."""

    opset: Opset = 20
    """Version of the ONNX operators. 20 runs in ONNX Runtime 1.17 and later; 18 is for teams pinned to 1.14-1.16."""
    weights: Literal["last", "best"] = "last"
    """Which weights are exported: those after the last epoch, or those of the best epoch on validation."""
    tolerance: PositiveFloat = 1e-4
    """Largest error allowed between network and float32 file, as a fraction of the largest logit; 2e-6 is usual."""
    reduced_tolerance: ReducedTolerances = ReducedTolerances()
    """The same for forms of fewer bits."""
    num_parity_images: PositiveInt = 64
    """Images of the validation split on which network and file are compared, from their files on."""
    license: str | None = None
    """SPDX identifier of the licence under which the exported files may be used, written into them."""
    any_size_entry: bool = False
    """Also write the form that takes pictures of any size, for ONNX Runtime; needs data that is resized."""
    float_entry: bool = False
    """Also write the form that takes float32 images (batch 3 height width), for converters to other formats."""

    def tolerance_of(self, form: str) -> float:
        """Tolerance of a form by the label in its file: `float32`, `float16`, `int8_static_u8u8`, …"""
        if form.startswith("float32"):
            return self.tolerance
        if "int4" in form:
            return self.reduced_tolerance.int4
        if "float16" in form:  # weights in bfloat16 too
            return self.reduced_tolerance.float16
        return self.reduced_tolerance.int8
