"""How an image of any size becomes the network's input when nothing is random: evaluation, calibration, deployment.

There is one implementation, `preprocess`, and one description, `Preprocessing`, which travels in the manifest and in
exported files so that whoever serves the model can do the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field, ValidationError

from compress.data.decoding import AlphaBackground, Pixels, UnreadableImageError
from compress.errors import ArtifactError
from compress.settings import PositiveInt, Settings

Interpolation = Literal["bilinear", "bicubic"]
CropFraction = Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)]

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

MAX_RESIZED_PIXELS = 89_478_485
"""Bound on the picture after resizing: a strip of 3,000,000 x 8 px passes any bound on the file, then explodes."""


class ResizeAndCrop(Settings):
    """Resize the shorter side, keep the aspect ratio, cut out the centre.

    Equal to torchvision's Resize(shorter_side) and CenterCrop on PIL images, pixel for pixel: the longer side is
    int(shorter_side * longer / shorter), the crop starts at round((side - size) / 2).
    """

    rule: Literal["resize_shorter_side_then_center_crop"] = "resize_shorter_side_then_center_crop"
    shorter_side: PositiveInt
    """Pixels of the shorter side after resizing: round(size / crop_fraction)."""
    crop_fraction: CropFraction
    """Part of the shorter side that the crop keeps."""
    interpolation: Interpolation
    """Pillow's filter of that name; the picture is averaged over the filter's footprint when it shrinks."""
    antialias: Literal[True] = True


class Preprocessing(Settings):
    """From a decoded picture to uint8 pixels H W 3; every value is plain JSON."""

    height: PositiveInt
    """Pixels of the result."""
    width: PositiveInt
    """Pixels of the result."""
    resize: ResizeAndCrop | None
    """None: pictures must have that size already."""
    alpha_background: AlphaBackground
    """Colour behind transparent pixels."""
    color_order: Literal["RGB"] = "RGB"
    exif_orientation: Literal["applied"] = "applied"
    value_range: Literal["uint8 0..255"] = "uint8 0..255"


def resize_and_crop(
    size: int, *, crop_fraction: float, interpolation: Interpolation, alpha_background: AlphaBackground
) -> Preprocessing:
    """The preprocessing to a square of `size` pixels."""
    return Preprocessing(
        height=size,
        width=size,
        resize=ResizeAndCrop(
            shorter_side=round(size / crop_fraction), crop_fraction=crop_fraction, interpolation=interpolation
        ),
        alpha_background=alpha_background,
    )


def preprocessing_in(metadata: Mapping[str, Any], name: object) -> Preprocessing:
    """What an exported file says in its metadata; `name` is for the message.

    Raises:
        ArtifactError: it does not say.
    """
    try:
        return Preprocessing.model_validate(metadata.get("preprocessing"))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("preprocessing", *first["loc"])))
        raise ArtifactError(
            f"{name}: its metadata does not say how pictures become images ({place}: {first['msg']}); export it again"
        ) from error


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """An upright RGB picture as the network's input, shape (height, width, 3).

    Raises:
        UnreadableImageError: the picture has another size and nothing may be resized, or is so elongated that
            resizing its shorter side would make it huge.
    """
    if preprocessing.resize is not None:
        image = _resize_and_crop(image, preprocessing, preprocessing.resize)
    if image.size != (preprocessing.width, preprocessing.height):
        raise UnreadableImageError(
            f"{image.width} x {image.height} px, expected {preprocessing.width} x {preprocessing.height}"
        )
    return np.asarray(image)


def _resize_and_crop(image: Image.Image, preprocessing: Preprocessing, resize: ResizeAndCrop) -> Image.Image:
    longer = int(resize.shorter_side * max(image.size) / min(image.size))
    if longer * resize.shorter_side > MAX_RESIZED_PIXELS:
        raise UnreadableImageError(
            f"{image.width} x {image.height} px are too elongated: resized they would be "
            f"{longer} x {resize.shorter_side} px"
        )
    size = (resize.shorter_side, longer) if image.width <= image.height else (longer, resize.shorter_side)
    if size != image.size:
        image = image.resize(size, RESAMPLING[resize.interpolation])
    left = round((image.width - preprocessing.width) / 2)
    top = round((image.height - preprocessing.height) / 2)
    return image.crop((left, top, left + preprocessing.width, top + preprocessing.height))


__all__ = ["Interpolation", "Preprocessing", "ResizeAndCrop", "preprocess", "resize_and_crop"]
