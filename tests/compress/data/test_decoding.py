"""Any file that Pillow reads becomes an upright 8-bit RGB picture, or an error that says why not."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from compress.data.decoding import (
    DEFAULT_MAX_PIXELS,
    AlphaBackground,
    UnreadableImageError,
    decode,
    image_extensions,
    readable_formats,
)
from tests.compress.data.pictures import encoded, noise, smooth


def read(content: bytes, *, max_pixels: int = 10_000, alpha_background: AlphaBackground = "white") -> Image.Image:
    return decode(content, max_pixels=max_pixels, alpha_background=alpha_background)


def pixels(picture: Image.Image) -> np.ndarray:
    assert picture.mode == "RGB"
    return np.asarray(picture)


def png(width: int, height: int, *, bit_depth: int = 8, color_type: int = 2, rows: bytes | None = None) -> bytes:
    """A PNG written by hand, whose header may promise more than its data holds."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    data = zlib.compress(rows if rows is not None else b"\0" * 64)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "TGA", "ICO", "JPEG2000"])
def test_lossless_formats_give_back_their_pixels(file_format: str) -> None:
    picture = noise(1, 16, 16).quantize(16).convert("RGB")
    options = {"lossless": True} if file_format == "WEBP" else {}
    assert np.array_equal(pixels(read(encoded(picture, file_format, **options))), pixels(picture))


def test_greyscale_is_repeated_in_all_channels() -> None:
    grey = noise(2).convert("L")
    assert np.array_equal(pixels(read(encoded(grey))), np.repeat(np.asarray(grey)[..., None], 3, axis=-1))


def test_bilevel_picture_is_black_and_white() -> None:
    bilevel = noise(3).convert("1")
    assert set(np.unique(pixels(read(encoded(bilevel))))) == {0, 255}


def test_cmyk_jpeg_shows_the_colours_of_its_rgb_original() -> None:
    original = smooth(4, 40, 32)
    difference = pixels(read(encoded(original.convert("CMYK"), "JPEG", quality=95))).astype(int) - pixels(original)
    assert np.abs(difference).mean() < 3  # JPEG; an inverted picture would be off by about 100


def test_palette_keeps_its_colours() -> None:
    palette = noise(5).quantize(8)
    assert np.array_equal(pixels(read(encoded(palette))), pixels(palette.convert("RGB")))


@pytest.mark.parametrize(("background", "expected"), [("white", 255), ("black", 0)])
def test_transparent_palette_entry_shows_the_background(background: AlphaBackground, expected: int) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    read_back = pixels(read(encoded(palette, transparency=0), alpha_background=background))
    assert read_back[0, 0].tolist() == [expected] * 3
    assert read_back[0, 1].tolist() == [40, 50, 60]


def test_palette_with_byte_transparency_is_blended() -> None:
    palette = Image.new("P", (1, 1))
    palette.putpalette([0, 0, 0])
    assert pixels(read(encoded(palette, transparency=bytes([128]))))[0, 0].tolist() == [127] * 3


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_half_transparent_black_on_white_is_grey(mode: str) -> None:
    half = Image.new(mode, (3, 3), (0, 0, 0, 128) if mode == "RGBA" else (0, 128))
    assert np.unique(pixels(read(encoded(half)))).tolist() == [127]


def test_colour_key_of_an_rgb_png_is_transparent() -> None:
    picture = Image.new("RGB", (2, 1), (9, 9, 9))
    picture.putpixel((1, 0), (1, 2, 3))
    read_back = pixels(read(encoded(picture, transparency=(9, 9, 9))))
    assert read_back.tolist() == [[[255, 255, 255], [1, 2, 3]]]


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 255, 32768, 65535]], dtype=np.uint16)
    for file_format in ("PNG", "TIFF"):
        read_back = pixels(read(encoded(Image.fromarray(values), file_format)))
        assert read_back[0, :, 0].tolist() == [0, 1, 128, 255], file_format


def test_16_bit_pgm_is_scaled() -> None:
    content = b"P5 2 1 65535\n" + struct.pack(">HH", 65535, 32768)
    assert pixels(read(content))[0, :, 1].tolist() == [255, 128]


def test_16_bit_rgb_png_keeps_the_upper_byte() -> None:
    row = b"\0" + struct.pack(">HHH", 0x1234, 0x80FF, 0xFFFF)
    assert pixels(read(png(1, 1, bit_depth=16, rows=row)))[0, 0].tolist() == [0x12, 0x80, 0xFF]


@pytest.mark.parametrize("values", [np.full((2, 2), 0.5, dtype=np.float32), np.full((2, 2), 70_000, dtype=np.int32)])
def test_values_without_a_defined_white_are_refused(values: np.ndarray) -> None:
    with pytest.raises(UnreadableImageError, match="no defined white; convert the file to 8 or 16 bits"):
        read(encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(file_format: str, orientation: int) -> None:
    upright = smooth(6, 24, 16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(upright, file_format, exif=exif)
    with Image.open(io.BytesIO(content)) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    assert np.array_equal(pixels(read(content)), pixels(expected))
    assert read(content).size == ((16, 24) if orientation > 4 else (24, 16))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_exif_beside_whole_pixels_is_ignored() -> None:
    content = encoded(smooth(7, 24, 16), "JPEG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")
    assert read(content).size == (24, 16)


def test_first_frame_of_an_animation_counts() -> None:
    first, second = noise(8).quantize(16), noise(9).quantize(16)
    content = encoded(first, "GIF", save_all=True, append_images=[second])
    assert np.array_equal(pixels(read(content)), pixels(first.convert("RGB")))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_truncated_file_is_an_error_not_a_grey_picture(file_format: str, kept: float) -> None:
    content = encoded(noise(10, 64, 64), file_format)
    with pytest.raises(UnreadableImageError):
        read(content[: int(kept * len(content))])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"this is a text file\n" * 20, "not an image"),
        (b"\x89PNG\r\n\x1a\n", "not an image|can not be decoded"),
        (b"<html><body>404</body></html>", "not an image"),
    ],
)
def test_what_is_no_image_is_said(content: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImageError, match=reason) as caught:
        read(content)
    assert "0x" not in str(caught.value)  # a memory address would make manifests differ from run to run


def test_postscript_is_not_executed() -> None:
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(UnreadableImageError, match="not an image"):
        read(content)
    assert "EPS" not in readable_formats()
    assert not {".eps", ".ps", ".h5", ".mpg"} & image_extensions()


def test_usual_endings_are_known() -> None:
    assert {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm"} <= image_extensions()


def test_pixels_are_counted_before_anything_is_decoded() -> None:
    with pytest.raises(UnreadableImageError, match="4000 x 4000 px are more than 10000 pixels"):
        read(png(4_000, 4_000))
    with pytest.raises(UnreadableImageError, match="max_pixels"):
        read(png(50_000, 50_000), max_pixels=DEFAULT_MAX_PIXELS)  # beyond Pillow's own bound: 7.5 GB


def test_the_pixel_bound_is_inclusive() -> None:
    assert read(encoded(noise(11, 10, 20)), max_pixels=200).size == (10, 20)
    with pytest.raises(UnreadableImageError, match="10 x 20 px are more than 199 pixels"):
        read(encoded(noise(11, 10, 20)), max_pixels=199)


def test_cut_off_palette_is_an_error() -> None:
    content = encoded(smooth(13, 24, 16).convert("P"), "ICNS")
    for num_bytes in range(0, len(content), len(content) // 40):
        with pytest.raises(UnreadableImageError):
            read(content[:num_bytes], max_pixels=2_000_000)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "TGA", "ICO", "ICNS"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files_give_a_picture_or_a_reason_and_nothing_else(file_format: str) -> None:
    random = np.random.default_rng(12)
    whole = np.frombuffer(encoded(smooth(12, 24, 16), file_format), dtype=np.uint8)
    for attempt in range(200):
        damaged = whole.copy()
        reach = min(400, len(damaged)) if attempt % 2 else len(damaged)  # headers break in more ways than pixels
        places = random.integers(0, reach, random.integers(1, 6))
        damaged[places] = random.integers(0, 256, len(places))
        try:
            picture = read(damaged.tobytes(), max_pixels=1_000_000)
        except UnreadableImageError as error:
            assert "\n" not in str(error)  # noqa: PT017  most damage is an error, some is only a wrong colour
        else:
            assert picture.mode == "RGB"
