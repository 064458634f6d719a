"""Changes of a picture's colours and geometry: 8-bit RGB in, the same size out; the picture given stays as it is.

The operations of AutoAugment (arXiv 1805.09501) and of colour jitter, with the parameters that RandAugment and
ColorJitter draw. Each equals timm's or torchvision's operation on Pillow images, pixel for pixel.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

Color = tuple[int, int, int]

_LEVELS = np.arange(256)


class Canvas(NamedTuple):
    """How a picture is drawn after it was moved."""

    resampling: Image.Resampling
    fill: Color
    """Colour where no part of the picture is."""


def auto_contrast(picture: Image.Image) -> Image.Image:
    """Stretch each channel to the full range."""
    tables = [_stretching(*extrema) for extrema in _channel_extrema(picture)]
    return picture.point([value for table in tables for value in table])


def equalize(picture: Image.Image) -> Image.Image:
    """Spread each channel's values so that all are about equally frequent."""
    histograms = np.array(picture.histogram()).reshape(3, 256)
    return picture.point(np.concatenate([_equalizing(histogram) for histogram in histograms]).tolist())


def invert(picture: Image.Image) -> Image.Image:
    """Exchange light and dark."""
    return picture.point(_inverting_above(0))


def posterize(picture: Image.Image, num_bits: int) -> Image.Image:
    """Keep the highest bits of each value; with none of them the picture is black."""
    return picture.point(_masking(num_bits))


def solarize(picture: Image.Image, threshold: int) -> Image.Image:
    """Invert values of `threshold` and more."""
    return picture.point(_inverting_above(threshold))


def solarize_add(picture: Image.Image, added: int) -> Image.Image:
    """Brighten the darker half of the values."""
    return picture.point(_adding_below_middle(added))


def saturation(picture: Image.Image, factor: float) -> Image.Image:
    """Move colours away from grey; 1 changes nothing, 0 is grey."""
    return ImageEnhance.Color(picture).enhance(factor)


def contrast(picture: Image.Image, factor: float) -> Image.Image:
    """Move values away from the mean grey; 1 changes nothing, 0 is a grey plane."""
    return ImageEnhance.Contrast(picture).enhance(factor)


def brightness(picture: Image.Image, factor: float) -> Image.Image:
    """Scale values; 1 changes nothing, 0 is black."""
    return ImageEnhance.Brightness(picture).enhance(factor)


def sharpness(picture: Image.Image, factor: float) -> Image.Image:
    """Move values away from those of the smoothed picture; 1 changes nothing, 0 is smooth."""
    return ImageEnhance.Sharpness(picture).enhance(factor)


def hue(picture: Image.Image, turn: float) -> Image.Image:
    """Turn the colour circle by a part of a whole turn, -0.5 to 0.5."""
    circle, *others = picture.convert("HSV").split()
    turned = np.asarray(circle) + np.uint8(int(turn * 255) % 256)  # past the end of the circle it begins again
    return Image.merge("HSV", (Image.fromarray(turned), *others)).convert("RGB")


def rotate(picture: Image.Image, degrees: float, canvas: Canvas) -> Image.Image:
    """Turn counter-clockwise about the centre."""
    return picture.rotate(degrees, canvas.resampling, fillcolor=canvas.fill)


def shear_x(picture: Image.Image, factor: float, canvas: Canvas) -> Image.Image:
    """Push each row to the left by `factor` pixels for each row above it."""
    return _moved(picture, (1.0, factor, 0.0, 0.0, 1.0, 0.0), canvas)


def shear_y(picture: Image.Image, factor: float, canvas: Canvas) -> Image.Image:
    """Push each column up by `factor` pixels for each column left of it."""
    return _moved(picture, (1.0, 0.0, 0.0, factor, 1.0, 0.0), canvas)


def translate_x(picture: Image.Image, fraction: float, canvas: Canvas) -> Image.Image:
    """Move left by a part of the width."""
    return _moved(picture, (1.0, 0.0, fraction * picture.width, 0.0, 1.0, 0.0), canvas)


def translate_y(picture: Image.Image, fraction: float, canvas: Canvas) -> Image.Image:
    """Move up by a part of the height."""
    return _moved(picture, (1.0, 0.0, 0.0, 0.0, 1.0, fraction * picture.height), canvas)


def _moved(picture: Image.Image, affine: tuple[float, ...], canvas: Canvas) -> Image.Image:
    return picture.transform(
        picture.size, Image.Transform.AFFINE, affine, resample=canvas.resampling, fillcolor=canvas.fill
    )


def _channel_extrema(picture: Image.Image) -> list[tuple[int, int]]:
    return [(int(low), int(high)) for low, high in np.array(picture.getextrema())]


@cache
def _stretching(low: int, high: int) -> list[int]:
    if high <= low:
        return _LEVELS.tolist()
    scale = 255.0 / (high - low)
    return np.clip((_LEVELS * scale + -low * scale).astype(np.int64), 0, 255).tolist()


def _equalizing(histogram: np.ndarray) -> np.ndarray:
    frequent = histogram[histogram > 0]
    step = int(frequent[:-1].sum()) // 255
    if step == 0:
        return _LEVELS
    num_below = np.cumsum(histogram) - histogram
    return np.minimum((step // 2 + num_below) // step, 255)


@cache
def _inverting_above(threshold: int) -> list[int]:
    return np.where(threshold <= _LEVELS, 255 - _LEVELS, _LEVELS).tolist() * 3


@cache
def _masking(num_bits: int) -> list[int]:
    return (_LEVELS & (0xFF00 >> num_bits)).tolist() * 3


@cache
def _adding_below_middle(added: int) -> list[int]:
    return np.where(_LEVELS < 128, np.minimum(_LEVELS + added, 255), _LEVELS).tolist() * 3
