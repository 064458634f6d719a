"""Format and size of a picture, read from its first bytes before anything is decoded.

Pillow would tell them too, but its reader takes seconds for a file made of millions of empty segments, and allocates a
WebP canvas before it tells the size. Only what is needed to refuse a picture is read here; decoding reads it again.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from compress.data.decoding import UnreadableImageError

MAX_SEGMENTS = 10_000
"""Parts of a file. Pictures have a few hundred; a reader of 8 MB of empty ones was busy for 7 s."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER = struct.Struct(">I4sII")
_PNG_CHUNK = struct.Struct(">I4s")
_JPEG = b"\xff\xd8\xff"
_JPEG_SIZE = struct.Struct(">HH")
# Markers C0..CF start a frame, but for the tables DHT, JPG and DAC.
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# TEM and RST0..RST7 have no length.
_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD8)})
_START_OF_SCAN, _END_OF_IMAGE, _FILL = 0xDA, 0xD9, 0xFF

_CUT_OFF = "can not be decoded: its header is damaged or cut off"
_TOO_MANY = f"can not be decoded: it consists of more than {MAX_SEGMENTS} parts"


class ImageHeader(NamedTuple):
    """What a file says it holds."""

    format: str
    width: int
    height: int


def read_header(content: bytes) -> ImageHeader:
    """Format and size of a JPEG, PNG or WebP file.

    Raises:
        UnreadableImageError: it is of another format, or its header is damaged.
    """
    if not content:
        raise UnreadableImageError("the file is empty")
    try:
        if content.startswith(_PNG):
            return ImageHeader("PNG", *_png_size(content))
        if content.startswith(_JPEG):
            return ImageHeader("JPEG", *_jpeg_size(content))
        if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
            return ImageHeader("WEBP", *_webp_size(content))
    except (struct.error, IndexError) as error:
        raise UnreadableImageError(_CUT_OFF) from error
    raise UnreadableImageError("not a JPEG, PNG or WebP picture")


def _png_size(content: bytes) -> tuple[int, int]:
    _, kind, width, height = _PNG_HEADER.unpack_from(content, len(_PNG))
    if kind != b"IHDR":
        raise UnreadableImageError(_CUT_OFF)
    place = len(_PNG)
    for _ in range(MAX_SEGMENTS):
        if place + _PNG_CHUNK.size > len(content):
            return width, height  # cut off: decoding says so
        length, kind = _PNG_CHUNK.unpack_from(content, place)
        if kind == b"IEND":
            return width, height
        place += length + 12  # length, kind and checksum
    raise UnreadableImageError(_TOO_MANY)


def _jpeg_size(content: bytes) -> tuple[int, int]:
    place = 2
    for _ in range(MAX_SEGMENTS):
        if content[place] != _FILL:
            raise UnreadableImageError(_CUT_OFF)
        marker = content[place + 1]
        if marker == _FILL:
            place += 1
        elif marker in _BARE_MARKERS:
            place += 2
        elif marker in _FRAME_MARKERS:
            height, width = _JPEG_SIZE.unpack_from(content, place + 5)  # after marker, length and precision
            return width, height
        elif marker in (_START_OF_SCAN, _END_OF_IMAGE):
            raise UnreadableImageError(_CUT_OFF)
        else:
            place += 2 + int.from_bytes(content[place + 2 : place + 4])
    raise UnreadableImageError(_TOO_MANY)


def _webp_size(content: bytes) -> tuple[int, int]:
    kind = content[12:16]
    if kind == b"VP8X":  # canvas, less one, in three bytes each
        return _little(content, 24, 3) + 1, _little(content, 27, 3) + 1
    if kind == b"VP8L":  # 14 bits each, less one, after a signature byte
        packed = _little(content, 21, 4)
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":  # 14 bits each, after the frame tag and start code
        return _little(content, 26, 2) & 0x3FFF, _little(content, 28, 2) & 0x3FFF
    raise UnreadableImageError(_CUT_OFF)


def _little(content: bytes, place: int, length: int) -> int:
    part = content[place : place + length]
    if len(part) < length:
        raise UnreadableImageError(_CUT_OFF)
    return int.from_bytes(part, "little")
