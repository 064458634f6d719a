"""The first pass over a source: every image is decoded once, hashed and summed; unreadable ones are listed.

An image's split is known only when all contents are. So decoded pixels go to one scratch file, in the order of the
source, and image files are read again from the source. Memory holds a few pictures at a time, and for each image its
name, hash and sums: a few hundred bytes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from PIL import Image

from compress.data import DataSettings
from compress.data.channel_sums import ChannelSums, channel_sums
from compress.data.decoding import AlphaBackground, UnreadableImageError, decode
from compress.data.manifest import SkippedFile, Storage
from compress.data.preprocessing import Preprocessing, preprocess, resize_and_crop
from compress.data.source import ImageCollection, RawImage, SourceImage
from compress.data.threads import map_in_threads
from compress.errors import DataError

LARGEST_ARRAY_SIDE = 64
"""With storage auto, larger pictures stay encoded."""
PHOTO_CROP_FRACTION = 0.875
"""224 of 256, the usual evaluation crop of photo classifiers."""

_SMALLEST_THREADED_PICTURE = 128 * 128  # px; below, two threads took longer than one (PNG and JPEG, 2 cores)
_NUM_NAMED = 5


@dataclass(frozen=True)
class StoredForm:
    """How every image of a data set is kept."""

    storage: Storage
    preprocessing: Preprocessing
    size_set_by: str | None
    """Native size: the file that all others must equal in size. None where images are resized."""


class ExaminedImage(NamedTuple):
    """What one image gave."""

    sha256: bytes
    origin_sha256: bytes
    sums: ChannelSums
    pixels: bytes
    """Empty in encoded storage."""


@dataclass(frozen=True)
class Examination:
    """What the first pass found: the readable images in the order of the source, and the others."""

    form: StoredForm
    places: Sequence[int]
    """Places in the collection; the other sequences run along."""
    images: Sequence[SourceImage]
    hashes: Sequence[bytes]
    """SHA-256 of what is stored: pixels or an image file's bytes."""
    origin_hashes: Sequence[bytes]
    """SHA-256 of what the source holds."""
    sums: Int64[np.ndarray, "N 2 3"]
    skipped: tuple[SkippedFile, ...]


def examine(
    collection: ImageCollection, settings: DataSettings, *, scratch: Path, advance: Callable[[], None]
) -> Examination:
    """Decode every image once; `scratch` receives the pixels of the readable ones when they are stored as arrays.

    Raises:
        DataError: more images are unreadable than allowed, or sizes differ and no image_size is set.
    """
    first_image, first_picture = _first_readable(collection, settings)
    form = _choose_form(settings, first_image, picture=first_picture)
    is_large = first_picture.width * first_picture.height >= _SMALLEST_THREADED_PICTURE
    many = map_in_threads if is_large or form.storage == "encoded" else map

    def examine_one(place: int) -> ExaminedImage | SkippedFile:
        return _examine_image(collection, place, form=form, max_pixels=settings.max_pixels)

    places: list[int] = []
    hashes: list[bytes] = []
    origin_hashes: list[bytes] = []
    skipped: list[SkippedFile] = []
    sums = np.zeros((len(collection.images), 2, 3), dtype=np.int64)
    with scratch.open("wb") as pixels:
        for place, outcome in enumerate(many(examine_one, range(len(collection.images)))):
            if isinstance(outcome, SkippedFile):
                skipped.append(outcome)
            else:
                sums[len(places)] = outcome.sums
                places.append(place)
                hashes.append(outcome.sha256)
                origin_hashes.append(outcome.origin_sha256)
                pixels.write(outcome.pixels)
            advance()
    _check_skipped(skipped, len(collection.images), max_fraction=settings.max_skipped_fraction)
    images = [collection.images[place] for place in places]
    return Examination(form, places, images, hashes, origin_hashes, sums[: len(places)], tuple(skipped))


def encoded_content(raw: RawImage) -> bytes:
    """An image as file content: a source's file as it is, pixels as PNG."""
    if isinstance(raw, bytes):
        return raw
    buffer = io.BytesIO()
    Image.fromarray(raw).save(buffer, format="PNG")
    return buffer.getvalue()


def _examine_image(
    collection: ImageCollection, place: int, *, form: StoredForm, max_pixels: int
) -> ExaminedImage | SkippedFile:
    file = collection.images[place].file
    try:
        raw = collection.read(place)
        picture = _picture(raw, max_pixels=max_pixels, alpha_background=form.preprocessing.alpha_background)
        _check_native_size(file, picture, form=form)
        pixels = preprocess(picture, form.preprocessing)
    except UnreadableImageError as error:
        return SkippedFile(file=file, reason=str(error))
    stored = pixels.tobytes() if form.storage == "arrays" else encoded_content(raw)
    return ExaminedImage(
        sha256=hashlib.sha256(stored).digest(),
        origin_sha256=hashlib.sha256(raw if isinstance(raw, bytes) else raw.tobytes()).digest(),
        sums=channel_sums(pixels),
        pixels=stored if form.storage == "arrays" else b"",
    )


def _picture(raw: RawImage, *, max_pixels: int, alpha_background: AlphaBackground) -> Image.Image:
    if isinstance(raw, bytes):
        return decode(raw, max_pixels=max_pixels, alpha_background=alpha_background)
    return Image.fromarray(raw)


def _first_readable(collection: ImageCollection, settings: DataSettings) -> tuple[SourceImage, Image.Image]:
    skipped: list[SkippedFile] = []
    for place, image in enumerate(collection.images):
        try:
            raw = collection.read(place)
            return image, _picture(raw, max_pixels=settings.max_pixels, alpha_background=settings.alpha_background)
        except UnreadableImageError as error:
            skipped.append(SkippedFile(file=image.file, reason=str(error)))
    raise DataError(_skipped_text(skipped, len(collection.images)) + ": repair the files")


def _choose_form(settings: DataSettings, first: SourceImage, *, picture: Image.Image) -> StoredForm:
    size, background = settings.image_size, settings.alpha_background
    if size is None:
        native = Preprocessing(height=picture.height, width=picture.width, resize=None, alpha_background=background)
        return StoredForm(_storage(settings, max(picture.size)), native, first.file)
    crop_fraction = settings.resize.crop_fraction
    if crop_fraction is None:
        crop_fraction = PHOTO_CROP_FRACTION if size > LARGEST_ARRAY_SIDE else 1.0
    resized = resize_and_crop(
        size,
        crop_fraction=crop_fraction,
        interpolation=settings.resize.interpolation,
        alpha_background=background,
    )
    return StoredForm(_storage(settings, size), resized, None)


def _storage(settings: DataSettings, side: int) -> Storage:
    if settings.storage == "auto":
        return "arrays" if side <= LARGEST_ARRAY_SIDE else "encoded"
    return settings.storage


def _check_native_size(file: str, picture: Image.Image, *, form: StoredForm) -> None:
    expected = (form.preprocessing.width, form.preprocessing.height)
    if form.size_set_by is not None and picture.size != expected:
        raise DataError(
            f"images differ in size: {file} has {picture.width} x {picture.height} px, {form.size_set_by} has "
            f"{expected[0]} x {expected[1]}; set image_size to bring all to one size"
        )


def _check_skipped(skipped: Sequence[SkippedFile], num_images: int, *, max_fraction: float) -> None:
    if len(skipped) > max_fraction * num_images:
        raise DataError(
            f"{_skipped_text(skipped, num_images)} (max_skipped_fraction is {max_fraction}): "
            "repair or delete them, or raise max_skipped_fraction"
        )


def _skipped_text(skipped: Sequence[SkippedFile], num_images: int) -> str:
    named = "; ".join(f"{one.file}: {one.reason}" for one in skipped[:_NUM_NAMED])
    rest = f"; and {len(skipped) - _NUM_NAMED} more" if len(skipped) > _NUM_NAMED else ""
    return f"{len(skipped)} of {num_images} images can not be used: {named}{rest}"
