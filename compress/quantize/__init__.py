"""Smaller and faster forms of an exported file: quantisers, one file each, and a measured search among them.

Adding a quantiser: its file, an import and a place in the union.
"""

from typing import Annotated

from pydantic import Field

from compress.quantize.base import CalibrationImages, QuantizedFile, Quantizer
from compress.quantize.calibration import Entropy, MinMax, Percentile
from compress.quantize.float16 import Float16
from compress.quantize.int8_dynamic import Int8Dynamic
from compress.quantize.int8_static import Int8Static
from compress.quantize.weight_only import WeightOnly

AnyQuantizer = Annotated[Int8Static | Int8Dynamic | WeightOnly | Float16, Field(discriminator="name")]

__all__ = [
    "AnyQuantizer",
    "CalibrationImages",
    "Entropy",
    "Float16",
    "Int8Dynamic",
    "Int8Static",
    "MinMax",
    "Percentile",
    "QuantizedFile",
    "Quantizer",
    "WeightOnly",
]
