"""RandAugment: a few operations at random, all of one strength.

Ekin D. Cubuk et al., RandAugment: Practical automated data augmentation with a reduced search space (arXiv 1909.13719).
The operations, their ranges and the random strength are those of timm's `rand-m9-mstd0.5-inc1`, which DeiT
(arXiv 2012.12877) and most ImageNet recipes since train with; the paper has neither the chance of 0.5 of leaving an
operation out nor the random strength.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple, final

from PIL import Image
from pydantic import Field

from compress.data import picture_operations as operations
from compress.data.counter_hash import standard_normal
from compress.data.picture_operations import Canvas
from compress.settings import NonNegativeFloat, PositiveInt, Settings

Byte = Annotated[int, Field(ge=0, le=255)]
Resamplings = tuple[Image.Resampling, ...]

_LARGEST_MAGNITUDE = 10.0
_DRAWS_PER_OPERATION = 5


class Strength(NamedTuple):
    """How an operation is carried out."""

    level: float
    """In [0, 1]; more is a stronger change."""
    sign: float
    """1 or -1: the direction of operations that have two."""
    canvas: Canvas

    def signed(self, largest: float) -> float:
        """An amount from -largest to largest."""
        return self.level * largest * self.sign

    def factor(self) -> float:
        """A factor from 0.1 to 1.9; 1 changes nothing."""
        return 1.0 + self.signed(0.9)


Operation = Callable[[Image.Image, Strength], Image.Image]

OPERATIONS: dict[str, Operation] = {
    "auto_contrast": lambda picture, _: operations.auto_contrast(picture),
    "equalize": lambda picture, _: operations.equalize(picture),
    "invert": lambda picture, _: operations.invert(picture),
    "rotate": lambda picture, strength: operations.rotate(picture, strength.signed(30.0), strength.canvas),
    "posterize": lambda picture, strength: operations.posterize(picture, 4 - int(strength.level * 4)),
    "solarize": lambda picture, strength: operations.solarize(picture, 256 - int(strength.level * 256)),
    "solarize_add": lambda picture, strength: operations.solarize_add(picture, int(strength.level * 110)),
    "saturation": lambda picture, strength: operations.saturation(picture, strength.factor()),
    "contrast": lambda picture, strength: operations.contrast(picture, strength.factor()),
    "brightness": lambda picture, strength: operations.brightness(picture, strength.factor()),
    "sharpness": lambda picture, strength: operations.sharpness(picture, strength.factor()),
    "shear_x": lambda picture, strength: operations.shear_x(picture, strength.signed(0.3), strength.canvas),
    "shear_y": lambda picture, strength: operations.shear_y(picture, strength.signed(0.3), strength.canvas),
    "translate_x": lambda picture, strength: operations.translate_x(picture, strength.signed(0.45), strength.canvas),
    "translate_y": lambda picture, strength: operations.translate_y(picture, strength.signed(0.45), strength.canvas),
}
"""By name, in timm's order; all but the first three become more severe with the level."""

_NAMES = tuple(OPERATIONS)


class DrawnOperation(NamedTuple):
    """One operation that a view gets."""

    name: str
    strength: Strength


@final
class RandAugment(Settings):
    """Random operations on colours and geometry; the defaults are the recipes' standard, magnitude 9 of 10."""

    num_ops: PositiveInt = 2
    """Operations drawn for a view; one may come twice."""
    probability: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Probability with which a drawn operation is carried out."""
    magnitude: Annotated[float, Field(ge=0.0, le=_LARGEST_MAGNITUDE)] = 9.0
    """Mean strength, from 0 to 10."""
    magnitude_std: NonNegativeFloat = 0.5
    """Standard deviation of the strength, which is drawn anew for every operation and kept within 0 and 10."""
    fill: tuple[Byte, Byte, Byte] = (124, 116, 104)
    """Colour (red, green, blue) that appears behind moved pictures; ImageNet's mean."""

    @property
    def num_draws(self) -> int:
        """Random numbers that a view takes."""
        return _DRAWS_PER_OPERATION * self.num_ops

    def draw(self, draws: Sequence[float], resamplings: Resamplings) -> list[DrawnOperation]:
        """The operations in their order, from numbers in [0, 1); each uses one of the resamplings at random."""
        drawn: list[DrawnOperation] = []
        for start in range(0, len(draws), _DRAWS_PER_OPERATION):
            choice, chance, normal, sign, resampling = draws[start : start + _DRAWS_PER_OPERATION]
            if chance >= self.probability:
                continue
            magnitude = self.magnitude + self.magnitude_std * standard_normal(normal)
            level = min(max(magnitude, 0.0), _LARGEST_MAGNITUDE) / _LARGEST_MAGNITUDE
            canvas = Canvas(resamplings[int(resampling * len(resamplings))], self.fill)
            strength = Strength(level, 1.0 if sign < 0.5 else -1.0, canvas)
            drawn.append(DrawnOperation(_NAMES[int(choice * len(_NAMES))], strength))
        return drawn

    def apply(self, picture: Image.Image, draws: Sequence[float], resamplings: Resamplings) -> Image.Image:
        """The picture after drawn operations."""
        for name, strength in self.draw(draws, resamplings):
            picture = OPERATIONS[name](picture, strength)
        return picture
