"""Small pictures, and folders and archives of them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def noise(seed: int | tuple[int, ...], width: int = 12, height: int = 12) -> Image.Image:
    """A picture that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def smooth(seed: int, width: int, height: int) -> Image.Image:
    """A picture that survives JPEG and resizing."""
    return noise(seed, 5, 4).resize((width, height), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    """The picture as file content."""
    buffer = io.BytesIO()
    picture.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def write_files(root: Path, files: Mapping[str, bytes]) -> Path:
    """Files of a folder by relative path; a path with a closing slash is an empty folder."""
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root


def write_archive(path: Path, files: Mapping[str, bytes]) -> Path:
    """The same as a zip archive."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def class_files(
    classes: Iterable[str] = ("apple", "pear"), *, num_images: int = 10, prefix: str = "", size: int = 12, seed: int = 0
) -> dict[str, bytes]:
    """PNG files of class folders, all different."""
    return {
        f"{prefix}{name}/{number:03d}.png": encoded(noise((seed, place, number), size, size))
        for place, name in enumerate(classes)
        for number in range(num_images)
    }
