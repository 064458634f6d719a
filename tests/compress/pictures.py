"""Picture files of one colour and a little noise, in folders named for their classes, and a file that is none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": 0, "green": 1, "blue": 2}


def write_picture(path: Path, colour: str, size: tuple[int, int] = (6, 4), *, level: int = 200) -> Path:
    """A picture of (width, height) in which one channel is brightest."""
    pixels = np.random.default_rng(0).integers(0, 40, (size[1], size[0], 3), dtype=np.uint8)
    pixels[..., COLOURS[colour]] += np.uint8(level)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_class_folders(folder: Path, *, per_class: int = 2, classes: Sequence[str] = tuple(COLOURS)) -> Path:
    """`folder/<class>/<number>.png`, and a file that is no picture."""
    for colour in classes:
        for number in range(per_class):
            write_picture(folder / colour / f"{number}.png", colour)
    (folder / "notes.txt").write_text("no picture")
    return folder
