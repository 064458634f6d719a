"""Images with labels: sources, one file each; the prepared on-disk form; views.

The union below is the registry of sources. Adding one: its file, an import and a place in the union. The contract
tests come free; preparing, reading and views know no source by name.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from compress.data.cifar import Cifar10, Cifar100
from compress.data.decoding import DEFAULT_MAX_PIXELS, LARGEST_MAX_PIXELS, AlphaBackground
from compress.data.digits import Digits
from compress.data.image_folder import ImageFolder
from compress.data.preprocessing import CropFraction, Interpolation
from compress.data.source import Source
from compress.settings import Fraction, NonNegativeInt, PositiveInt, Settings

DataSource = Annotated[Digits | Cifar10 | Cifar100 | ImageFolder, Field(discriminator="name")]
"""Every source of images."""

CarvedFraction = Annotated[float, Field(gt=0.0, lt=1.0, allow_inf_nan=False)]


class Resize(Settings):
    """How a picture of any size becomes image_size x image_size: shorter side resized, centre cut out."""

    crop_fraction: CropFraction | None = None
    """Part of the resized shorter side that is kept. None: 0.875 (224 of 256) above 64 px, everything up to 64 px."""
    interpolation: Interpolation = "bilinear"
    """Filter; pixels are averaged when a picture shrinks."""


class DataSettings(Settings):
    """What the images are and how they are prepared."""

    source: DataSource
    """Where the images come from."""
    image_size: PositiveInt | None = None
    """Side of the square that networks see, in pixels. None: native; all images must have one size."""
    storage: Literal["auto", "arrays", "encoded"] = "auto"
    """arrays: decoded pixels; encoded: the files' own bytes, decoded on reading. auto: arrays up to 64 px a side."""
    resize: Resize = Resize()
    """How images become image_size; has no meaning without it."""
    alpha_background: AlphaBackground = "white"
    """Colour put behind transparent pixels."""
    max_pixels: Annotated[int, Field(gt=0, le=LARGEST_MAX_PIXELS)] = DEFAULT_MAX_PIXELS
    """Images with more pixels are not decoded but skipped: a small file can hold a picture larger than memory."""
    validation_fraction: CarvedFraction = 0.1
    """Part of the images carved out for validation where the source brings no validation split."""
    test_fraction: CarvedFraction = 0.2
    """Part of the images carved out for test where the source brings no test split."""
    max_train_images_per_class: PositiveInt | None = None
    """At most so many train images of each class, chosen by `seed`: for a first try, or to see what more data brings.
    Validation and test stay as they are."""
    stratify: bool = True
    """Carve from each class alike, so that every class is in every split. Off: one random draw over all images."""
    duplicates: Literal["report", "drop_from_train"] = "report"
    """Images that the source has both in train and in validation or test: list them only, or drop them from train.
    Splits carved here never share an image: copies of one image stay together."""
    max_skipped_fraction: Fraction = 0.0
    """Part of all images that may be unreadable; they are listed and skipped. More are an error."""
    seed: NonNegativeInt = 0
    """Chooses the images that are carved out, and those that max_train_images_per_class keeps."""

    @model_validator(mode="after")
    def _has_effect(self) -> "DataSettings":
        if self.image_size is None and self.resize != Resize():
            raise ValueError("resize has no effect without image_size; set image_size or remove resize")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                "validation_fraction and test_fraction leave nothing to train on; together they must be < 1"
            )
        return self


__all__ = [
    "Cifar10",
    "Cifar100",
    "DataSettings",
    "DataSource",
    "Digits",
    "ImageFolder",
    "Resize",
    "Source",
]
