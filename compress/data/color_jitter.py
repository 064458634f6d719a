"""Random brightness, contrast, saturation and hue, in random order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple, final

from PIL import Image
from pydantic import Field, model_validator

from compress.data.picture_operations import brightness, contrast, hue, saturation
from compress.settings import NonNegativeFloat, Settings

Property = Literal["brightness", "contrast", "saturation", "hue"]

_OPERATIONS: dict[Property, Callable[[Image.Image, float], Image.Image]] = {
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "hue": hue,
}


class Adjustment(NamedTuple):
    """One drawn change."""

    property: Property
    amount: float
    """A factor, for the hue a part of a turn."""


@final
class ColorJitter(Settings):
    """Colours changed by random amounts: torchvision's ColorJitter. ImageNet recipes have 0.4, 0.4, 0.4 and no hue."""

    brightness: NonNegativeFloat = 0.0
    """The factor is uniform between 1 - this, at least 0, and 1 + this; 0 leaves the brightness alone."""
    contrast: NonNegativeFloat = 0.0
    """The same for the contrast."""
    saturation: NonNegativeFloat = 0.0
    """The same for the saturation."""
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """The hue turns by a part of the colour circle that is uniform between minus this and this."""

    @model_validator(mode="after")
    def _changes_something(self) -> ColorJitter:
        if not any(self._range(name) for name in _OPERATIONS):
            raise ValueError("color_jitter with zeros changes nothing; set brightness, contrast, saturation or hue")
        return self

    @property
    def num_draws(self) -> int:
        """Random numbers that a view takes: a place in the order and an amount for each property."""
        return 2 * len(_OPERATIONS)

    def draw(self, draws: Sequence[float]) -> list[Adjustment]:
        """The changes in their order, from numbers in [0, 1)."""
        places, amounts = draws[: len(_OPERATIONS)], draws[len(_OPERATIONS) :]
        order = sorted(zip(places, _OPERATIONS, amounts, strict=True))
        return [Adjustment(name, self._amount(name, draw)) for _, name, draw in order if self._range(name)]

    def apply(self, picture: Image.Image, draws: Sequence[float]) -> Image.Image:
        """The picture with drawn changes."""
        for name, amount in self.draw(draws):
            picture = _OPERATIONS[name](picture, amount)
        return picture

    def _range(self, name: Property) -> float:
        ranges = {
            "brightness": self.brightness,
            "contrast": self.contrast,
            "saturation": self.saturation,
            "hue": self.hue,
        }
        return ranges[name]

    def _amount(self, name: Property, draw: float) -> float:
        half = self._range(name)
        low, high = (-half, half) if name == "hue" else (max(0.0, 1.0 - half), 1.0 + half)
        return low + (high - low) * draw
