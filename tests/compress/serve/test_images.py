"""Pictures become what validation images became, within limits that hold before anything is decoded."""

from __future__ import annotations

import tracemalloc
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from compress.data.decoding import LARGEST_MAX_PIXELS, decode
from compress.data.preprocessing import Preprocessing, preprocess, resize_and_crop
from compress.serve.errors import RequestError
from compress.serve.images import ImageReader
from compress.serve.settings import Limits
from tests.compress.deployed_student import PREPROCESSING, SIZE
from tests.compress.serve.pictures import encoded, every_kind, png, png_chunk, scene, turned

NATIVE = Preprocessing(height=40, width=60, resize=None, alpha_background="white")


def refusal(content: bytes, *, preprocessing: Preprocessing = PREPROCESSING, limits: Limits | None = None) -> str:
    with pytest.raises(RequestError) as caught:
        ImageReader(preprocessing, limits or Limits())(content)
    assert (caught.value.status, caught.value.code) == (422, "unreadable_image")
    return caught.value.message


@pytest.mark.parametrize("kind", every_kind())
def test_every_kind_of_picture_is_read_as_validation_images_were(kind: str) -> None:
    content = every_kind()[kind]
    picture = decode(content, max_pixels=LARGEST_MAX_PIXELS, alpha_background=PREPROCESSING.alpha_background)
    pixels = ImageReader(PREPROCESSING, Limits())(content)
    assert pixels.shape == (SIZE, SIZE, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, preprocess(picture, PREPROCESSING))


def test_turned_picture_is_read_upright() -> None:
    upright = encoded(scene(40, 60), "PNG")
    lying = encoded(scene(40, 60).transpose(Image.Transpose.ROTATE_90), "PNG", exif=turned(6))
    read = ImageReader(PREPROCESSING, Limits())
    np.testing.assert_array_equal(read(upright), read(lying))
    assert not np.array_equal(read(upright), read(encoded(scene(40, 60).transpose(Image.Transpose.ROTATE_90), "PNG")))


def test_transparency_gets_the_background_of_the_metadata() -> None:
    clear = encoded(Image.new("RGBA", (60, 40), (9, 9, 9, 0)), "PNG")
    for background, value in (("white", 255), ("black", 0)):
        preprocessing = NATIVE.model_copy(update={"alpha_background": background})
        assert (ImageReader(preprocessing, Limits())(clear) == value).all()


def test_model_without_a_resize_rule_takes_its_own_size_only() -> None:
    read = ImageReader(NATIVE, Limits())
    np.testing.assert_array_equal(read(encoded(scene(), "PNG")), np.asarray(scene()))
    assert "40 x 60 px, expected 60 x 40" in refusal(encoded(scene(40, 60), "PNG"), preprocessing=NATIVE)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (png(30_000, 30_000, bytes(10_000)), "30000 x 30000 px are more than 25000000 pixels"),
        (png(2**31 - 1, 2**31 - 1), "more than 25000000 pixels"),
        (png(3_000_000, 8), "3000000 x 8 px: a side is longer than 16384"),
        (png(0, 8), "no pixels"),
        (encoded(Image.new("RGB", (16_383, 16_383)), "WEBP", lossless=True), "more than 25000000 pixels"),
    ],
    ids=["bomb", "2**62 pixels", "strip", "nothing", "webp canvas"],
)
def test_bomb_is_refused_by_its_header(content: bytes, told: str) -> None:
    tracemalloc.start()
    try:
        assert told in refusal(content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_picture_that_would_explode_when_resized_is_refused_by_its_header() -> None:
    photo = resize_and_crop(224, crop_fraction=0.875, interpolation="bilinear", alpha_background="white")
    assert "16384 x 20 px are too elongated: resized" in refusal(png(16_384, 20), preprocessing=photo)
    assert "truncated" in refusal(png(16_384, 100), preprocessing=photo), "it may be decoded"


def test_size_that_contradicts_the_header_is_refused_too() -> None:
    second_header = png(24_000, 8)[8:33]
    content = png(8, 8, bytes(8 * (24_000 * 3 + 1)), extra=second_header)
    assert "24000 x 8 px: a side is longer" in refusal(content)


def test_limits_can_be_set() -> None:
    content = encoded(scene(), "PNG")
    assert "more than 2399 pixels" in refusal(content, limits=Limits(max_pixels=2_399))
    assert "longer than 59" in refusal(content, limits=Limits(max_side=59))


@pytest.mark.parametrize("kind", ["jpeg", "progressive jpeg", "cmyk jpeg", "png", "webp", "lossless webp"])
def test_picture_cut_off_is_refused(kind: str) -> None:
    content = every_kind()[kind]
    for length in (len(content) // 2, len(content) - 40):
        refusal(content[:length])


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"{}", encoded(scene(), "GIF"), encoded(scene(), "TIFF"), encoded(scene(), "BMP")],
    ids=["empty", "text", "json", "gif", "tiff", "bmp"],
)
def test_what_is_no_picture_of_a_served_format_is_refused(content: bytes) -> None:
    assert "empty" in refusal(content) or "not a JPEG, PNG or WebP" in refusal(content)


def test_text_that_inflates_is_refused() -> None:
    bomb = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000), 9))
    refusal(png(8, 8, bytes(8 * 25), extra=bomb))


def test_damaged_files_are_refused_or_read_but_never_crash() -> None:
    random = np.random.default_rng(0)
    read = ImageReader(PREPROCESSING, Limits())
    for content in every_kind().values():
        damaged = bytearray(content)
        for place in random.integers(0, len(content), 8):
            damaged[place] = random.integers(0, 256)
        with suppress(RequestError):
            read(bytes(damaged))
