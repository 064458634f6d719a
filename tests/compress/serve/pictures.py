"""Pictures as files, good and bad."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """An image file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def scene(width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    """A picture that changes when it is turned, mirrored or cropped elsewhere."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = (rows * 255 // height, columns * 255 // width, (rows * columns) % 256)
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8)).convert(mode)


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes = b"", *, extra: bytes = b"") -> bytes:
    """An RGB PNG that says it has this size, whatever its pixels are."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = png_chunk(b"IDAT", zlib.compress(pixels, 9))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + extra + data + png_chunk(b"IEND")


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = orientation
    return exif


def every_kind() -> dict[str, bytes]:
    """Pictures as cameras, browsers and painting programs make them."""
    scene_alpha = scene(mode="RGBA")
    scene_alpha.putalpha(scene(mode="L"))
    deep = Image.fromarray(np.asarray(scene(mode="L")).astype(np.uint16) * 257)
    palette = scene().quantize(16)
    return {
        "jpeg": encoded(scene(), "JPEG"),
        "progressive jpeg": encoded(scene(), "JPEG", progressive=True),
        "grey jpeg": encoded(scene(mode="L"), "JPEG"),
        "cmyk jpeg": encoded(scene(mode="CMYK"), "JPEG"),
        **{f"turned jpeg {place}": encoded(scene(), "JPEG", exif=turned(place)) for place in range(2, 9)},
        "large jpeg": encoded(scene(700, 300), "JPEG"),
        "tiny png": encoded(scene(3, 2), "PNG"),
        "png": encoded(scene(), "PNG"),
        "grey png": encoded(scene(mode="L"), "PNG"),
        "16 bit png": encoded(deep, "PNG"),
        "two-tone png": encoded(scene(mode="1"), "PNG"),
        "transparent png": encoded(scene_alpha, "PNG"),
        "grey and alpha png": encoded(scene_alpha.convert("LA"), "PNG"),
        "palette png": encoded(palette, "PNG"),
        "transparent palette png": encoded(palette, "PNG", transparency=3),
        "webp": encoded(scene(), "WEBP"),
        "lossless webp": encoded(scene(), "WEBP", lossless=True),
        "transparent webp": encoded(scene_alpha, "WEBP"),
    }
