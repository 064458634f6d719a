"""How networks are exported and how closely the files must agree with them."""

from __future__ import annotations

from typing import Literal

from compress.settings import PositiveFloat, PositiveInt, Settings

Opset = Literal[18, 19, 20]


class ExportSettings(Settings):
    """From a trained network to an ONNX file."""

    opset: Opset = 20
    """Version of the ONNX operators. 20 runs in ONNX Runtime 1.17 and later; 18 is for teams pinned to 1.14-1.16."""
    weights: Literal["last", "best"] = "last"
    """Which weights are exported: those after the last epoch, or those of the best epoch on validation."""
    tolerance: PositiveFloat = 1e-4
    """Largest error allowed between network and file, as a fraction of the largest logit; 2e-6 is usual."""
    num_parity_images: PositiveInt = 64
    """Images of the validation split on which network and file are compared."""
