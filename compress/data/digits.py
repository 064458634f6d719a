"""The 1,797 handwritten digits that come with scikit-learn: 8 x 8 px, embedded, no download.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998 (its test part).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal, final

import numpy as np

from compress.data.source import ImageCollection, RawImage, Source, SourceImage
from compress.errors import DataError


@final
class Digits(Source):
    """scikit-learn's 1,797 handwritten digits, 8 x 8 px, ten classes; needs no network."""

    name: Literal["digits"] = "digits"

    @contextmanager
    def open(self) -> Generator[ImageCollection]:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise DataError(
                "the digits data set comes with scikit-learn, which is not installed: "
                "pip install scikit-learn, or choose another data source"
            ) from error
        bunch: Any = load_digits()
        # 0..16 to 0..255; the grey value stands in all three channels.
        grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
        pixels = np.repeat(grey[..., None], 3, axis=-1)

        def read(place: int) -> RawImage:
            return pixels[place]

        images = [
            SourceImage(f"{label}/{place:04d}", int(label), None) for place, label in enumerate(bunch.target.tolist())
        ]
        yield ImageCollection(tuple(str(digit) for digit in range(10)), images, read)
