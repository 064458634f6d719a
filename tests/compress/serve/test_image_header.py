"""A picture's format and size are read before anything is decoded, whatever the file is made of."""

from __future__ import annotations

from contextlib import suppress

import pytest
from PIL import Image

from compress.data.decoding import UnreadableImageError
from compress.serve.image_header import MAX_SEGMENTS, read_header
from tests.compress.serve.pictures import encoded, every_kind, png, png_chunk, scene

SIZES = {"large jpeg": (700, 300), "tiny png": (3, 2)}
FORMATS = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}


@pytest.mark.parametrize("kind", every_kind())
def test_header_says_what_pillow_says(kind: str) -> None:
    width, height = SIZES.get(kind, (60, 40))
    file_format = next(name for word, name in FORMATS.items() if word in kind)
    assert read_header(every_kind()[kind]) == (file_format, width, height)


def test_phone_jpeg_with_a_second_picture_is_a_jpeg() -> None:
    content = encoded(scene(), "MPO", save_all=True, append_images=[scene(8, 8)])
    assert read_header(content) == ("JPEG", 60, 40)


def test_animated_webp_has_the_size_of_its_canvas() -> None:
    content = encoded(scene(), "WEBP", save_all=True, append_images=[scene().rotate(90)])
    assert content[12:16] == b"VP8X"
    assert read_header(content) == ("WEBP", 60, 40)


@pytest.mark.parametrize("size", [(1, 1), (16383, 1), (1, 16383)])
def test_largest_webp_sides_are_read(size: tuple[int, int]) -> None:
    for lossless in (False, True):
        assert read_header(encoded(Image.new("RGB", size), "WEBP", lossless=lossless))[1:] == size


@pytest.mark.parametrize("kind", ["jpeg", "turned jpeg 6", "png", "webp", "lossless webp", "transparent webp"])
def test_file_cut_off_anywhere_is_refused_or_keeps_its_size(kind: str) -> None:
    content = every_kind()[kind]
    whole = read_header(content)
    for length in range(len(content)):
        with suppress(UnreadableImageError):
            assert read_header(content[:length]) == whole


@pytest.mark.parametrize(
    "content",
    [
        b"GIF89a" + bytes(100),
        b"II*\0" + bytes(100),
        b"BM" + bytes(100),
        b"<svg/>",
        b"hello",
        b"RIFF\0\0\0\0WAVE",
        b"\xff\xd8",
    ],
    ids=["gif", "tiff", "bmp", "svg", "text", "sound", "two bytes of a jpeg"],
)
def test_other_formats_are_refused(content: bytes) -> None:
    with pytest.raises(UnreadableImageError, match="not a JPEG, PNG or WebP picture"):
        read_header(content)


FLOODS = {
    "empty jpeg segments": b"\xff\xd8" + b"\xff\xef\x00\x02" * 1_000_000,
    "jpeg fill bytes": b"\xff\xd8" + b"\xff" * 4_000_000,
    "jpeg segments of no length": b"\xff\xd8\xff\xe0\x00\x00" + b"\xff\xe0\x00\x00" * 1_000_000,
    "jpeg restarts": b"\xff\xd8" + b"\xff\xd0" * 1_000_000,
    "png chunks before the pixels": png(8, 8, bytes(8 * 25), extra=png_chunk(b"tpPz") * 300_000),
    "png chunks after the pixels": png(8, 8, bytes(8 * 25))[:-12] + png_chunk(b"tpPz") * 300_000,
}


@pytest.mark.parametrize("content", FLOODS.values(), ids=FLOODS)
def test_file_of_countless_parts_is_refused(content: bytes) -> None:
    with pytest.raises(UnreadableImageError, match=rf"(more than {MAX_SEGMENTS} parts|damaged)"):
        read_header(content)


def test_picture_of_many_parts_is_read() -> None:
    content = png(8, 8, bytes(8 * 25), extra=png_chunk(b"tpPz") * (MAX_SEGMENTS - 10))
    assert read_header(content) == ("PNG", 8, 8)


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IDAT", bytes(13)),
        b"\xff\xd8\xff\xe0\x00\x04abcd\xff\xd9",
        b"\xff\xd8\xff\xe0\x00\x04ab\xff\xda\x00\x04ab",
        b"\xff\xd8\xff\xd9",
        b"RIFF\x00\x00\x00\x00WEBPALPH" + bytes(20),
    ],
    ids=["png without header", "jpeg lost", "jpeg scan without frame", "jpeg of nothing", "webp of nothing"],
)
def test_damaged_header_is_refused(content: bytes) -> None:
    with pytest.raises(UnreadableImageError, match="damaged or cut off"):
        read_header(content)
