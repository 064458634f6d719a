"""From the bytes of a picture to the model's input, as validation images went, within limits."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import final

from compress.data.decoding import Pixels, UnreadableImageError, check_num_pixels, decode
from compress.data.preprocessing import Preprocessing, preprocess
from compress.serve.errors import RequestError
from compress.serve.image_header import read_header
from compress.serve.settings import Limits

LARGE_PICTURE = 4_000_000
"""Pixels. Larger pictures are decoded one at a time: decoding takes up to 27 bytes for each pixel."""


@final
class ImageReader:
    """Decodes and preprocesses pictures; may be called from several threads."""

    def __init__(self, preprocessing: Preprocessing, limits: Limits) -> None:
        self._preprocessing = preprocessing
        self._limits = limits
        self.large = threading.Lock()
        """Held while a picture, or anything else, takes much memory."""

    def __call__(self, content: bytes) -> Pixels:
        """The model's input, shape (height, width, 3).

        Raises:
            RequestError: it is no picture of a served format, damaged, cut off, or beyond the limits.
        """
        try:
            return self._read(content)
        except UnreadableImageError as error:
            raise RequestError(422, "unreadable_image", f"image: {error}") from error

    def _read(self, content: bytes) -> Pixels:
        header = read_header(content)
        self._check(header.width, header.height)
        with self.large if header.width * header.height > LARGE_PICTURE else nullcontext():
            picture = decode(
                content,
                max_pixels=self._limits.max_pixels,
                alpha_background=self._preprocessing.alpha_background,
            )
            # A file may state its size twice; what was decoded counts.
            self._check(picture.width, picture.height)
            return preprocess(picture, self._preprocessing)

    def _check(self, width: int, height: int) -> None:
        if width == 0 or height == 0:
            raise UnreadableImageError("it has no pixels")
        check_num_pixels(width, height, max_pixels=self._limits.max_pixels)
        if max(width, height) > self._limits.max_side:
            raise UnreadableImageError(
                f"{width} x {height} px: a side is longer than {self._limits.max_side} (max_side)"
            )
        if self._preprocessing.resize is not None:
            shorter = self._preprocessing.resize.shorter_side
            longer = shorter * max(width, height) // min(width, height)
            if shorter * longer > self._limits.max_pixels:
                raise UnreadableImageError(
                    f"{width} x {height} px are too elongated: resized they would be {longer} x {shorter} px"
                )
