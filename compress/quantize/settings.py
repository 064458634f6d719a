"""What is searched, and what a form must bring to be worth having."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compress.quantize import AnyQuantizer, Int8Dynamic, Int8Static
from compress.settings import Fraction, NonNegativeFloat, PositiveInt, Settings


class Target(Settings):
    """The processor that will run the file."""

    threads: PositiveInt = 1
    """Threads inside one call."""
    batch_size: PositiveInt = 1
    """Images per call."""
    has_vnni: Literal["auto"] | bool = "auto"
    """Whether it adds 8-bit products exactly: x86 with VNNI, or another kind of processor. `true` counts what was
    measured, `false` what x86 without VNNI answers, `auto` asks for both: the file may meet either."""


class Budget(Settings):
    """What a form must bring and may cost."""

    max_drop: Fraction = 0.01
    """Largest loss of validation accuracy against float32, in [0, 1]: 0.01 is one point."""
    min_speedup: float = Field(default=1.05, ge=1.0, allow_inf_nan=False)
    """Smallest ratio of float32's median latency to the form's, 1 or more; the file must be smaller in any case."""
    target: Target = Target()


class SearchSettings(Budget):
    """Which forms are tried, on what, and what they must bring."""

    candidates: tuple[AnyQuantizer, ...] = (
        Int8Static(),
        Int8Static(float_ends=True),
        Int8Static(reduce_range=True),
        Int8Static(types="u8u8"),
        Int8Static(types="s8s8"),
        Int8Dynamic(),
    )
    """Forms that are made and measured."""
    num_calibration_images: PositiveInt = 256
    """Train images that activations are observed on; 32 suffice as a rule, 8 do not."""
    num_validation_images: PositiveInt | None = None
    """Images that accuracy is measured on; by default all of them."""
    seed: int = Field(default=0, ge=0)
    """Draws the images."""
    batch_size: PositiveInt = 256
    """Images per call while accuracy is measured."""
    threads: PositiveInt | None = None
    """CPU threads while accuracy is measured; by default all cores. Latency has its own, target.threads."""
    min_seconds: NonNegativeFloat = 3.0
    """Timing goes on for this long, all forms together."""
