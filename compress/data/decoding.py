"""Any file that Pillow reads, as an upright 8-bit RGB picture.

Rules, the same for every consumer: the EXIF orientation is applied; transparency is composited on a stated
background; greyscale is repeated to three channels; palettes and CMYK are converted by Pillow's plain formulas, colour
profiles are ignored; 16-bit grey is scaled to 8 bits; of an animation or a multi-page file the first picture counts.
A file that is cut off is an error, never a picture with a grey rest: ImageFile.LOAD_TRUNCATED_IMAGES stays off.
"""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from compress.errors import DataError

Pixels = UInt8[np.ndarray, "H W 3"]
AlphaBackground = Literal["white", "black"]

DEFAULT_MAX_PIXELS = 89_478_485
"""Above this Pillow warns of a decompression bomb."""
LARGEST_MAX_PIXELS = 2 * DEFAULT_MAX_PIXELS
"""Above this Pillow refuses to open a file."""

_BACKGROUNDS = {"white": (255, 255, 255, 255), "black": (0, 0, 0, 255)}

# EPS runs Ghostscript on the file; the others are stubs that recognise a file and then can not decode it.
_REFUSED_FORMATS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})

# What Pillow's decoders are seen to raise on damaged files. They are written for valid input, so that a damaged one
# surfaces as whatever the parser trips over; anything outside this list is a defect worth a traceback.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    AssertionError,
    AttributeError,
    ArithmeticError,
    LookupError,
    EOFError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)
_BOMB_ERRORS = (Image.DecompressionBombError, Image.DecompressionBombWarning)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(DataError):
    """One image can not be used. The message is the reason; the caller knows the file's name."""


@cache
def readable_formats() -> tuple[str, ...]:
    """Names of the formats that Pillow decodes here, the usual two first because they are tried in this order."""
    Image.init()
    others = sorted(set(Image.OPEN) - _REFUSED_FORMATS - {"PNG", "JPEG"})
    return ("PNG", "JPEG", *others)


@cache
def image_extensions() -> frozenset[str]:
    """File name endings of those formats: lower case, with the dot."""
    formats = set(readable_formats())
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats)


def decode(content: bytes, *, max_pixels: int, alpha_background: AlphaBackground) -> Image.Image:
    """The picture in an image file's bytes: mode RGB, upright.

    Raises:
        UnreadableImageError: it is no image, damaged, cut off, of an undefined value range, or has more than
            `max_pixels` pixels (looked up in its header, before anything is decoded).
    """
    if not content:
        raise UnreadableImageError("the file is empty")
    try:
        with Image.open(io.BytesIO(content), formats=readable_formats()) as image:
            check_num_pixels(image.width, image.height, max_pixels=max_pixels)
            image.load()
            return to_rgb(_upright(image), alpha_background)
    except UnidentifiedImageError as error:  # its own text names a memory address
        raise UnreadableImageError("not an image: no format that Pillow decodes") from error
    except _BOMB_ERRORS as error:
        raise UnreadableImageError(f"more than {max_pixels} pixels (max_pixels)") from error
    except _DECODER_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(f"can not be decoded: {reason}") from error


def check_num_pixels(width: int, height: int, *, max_pixels: int) -> None:
    """Refuse a picture that is too large to hold in memory.

    Raises:
        UnreadableImageError: it has more than `max_pixels` pixels.
    """
    if width * height > max_pixels:
        raise UnreadableImageError(f"{width} x {height} px are more than {max_pixels} pixels (max_pixels)")


def to_rgb(image: Image.Image, alpha_background: AlphaBackground) -> Image.Image:
    """A decoded picture of any mode as 8-bit RGB.

    Raises:
        UnreadableImageError: its values have no defined white: floats, or integers beyond 16 bits.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_deep_grey(image).convert("RGB")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        background = Image.new("RGBA", opaque.size, _BACKGROUNDS[alpha_background])
        return Image.alpha_composite(background, opaque).convert("RGB")
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    # Pillow's own conversion clips at 255, which turns most 16-bit pictures white.
    if image.mode == "F":
        raise UnreadableImageError("float pixels have no defined white; convert the file to 8 or 16 bits")
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImageError("32-bit pixels have no defined white; convert the file to 8 or 16 bits")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _upright(image: Image.Image) -> Image.Image:
    # Asked after load(): Pillow turns TIFF files itself while loading and removes the tag.
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODER_ERRORS:  # damaged EXIF beside whole pixels: shown as stored, as viewers do
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
