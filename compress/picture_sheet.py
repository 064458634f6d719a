"""Pictures in rows with lines of text below each, as one PNG file for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from compress.errors import ArtifactError

COLUMNS = 6
SIDE = 176
"""Pixels of the square that a picture is fitted into."""
GAP = 10
FONT_SIZE = 12
LINE = 16
INK, PAPER, MUTED = (20, 20, 20), (255, 255, 255), (110, 110, 110)


class Cell(NamedTuple):
    """One picture and what is said about it."""

    picture: Image.Image
    lines: tuple[str, ...]


def write_sheet(path: Path, cells: Sequence[Cell], *, title: str) -> None:
    """Write the sheet; without cells it holds the title alone.

    Raises:
        ArtifactError: the file cannot be written.
    """
    columns = max(1, min(COLUMNS, len(cells)))
    num_lines = max((len(cell.lines) for cell in cells), default=0)
    height = SIDE + num_lines * LINE + GAP
    rows = -(-len(cells) // columns)
    width = max(GAP + columns * (SIDE + GAP), GAP * 2 + int(_font().getlength(_writable(title))))
    sheet = Image.new("RGB", (width, GAP * 2 + LINE + rows * height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP // 2), _writable(title), fill=INK, font=_font())
    for place, cell in enumerate(cells):
        left = GAP + place % columns * (SIDE + GAP)
        top = GAP + LINE + place // columns * height
        picture = _fitted(cell.picture)
        sheet.paste(picture, (left + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2))
        for number, line in enumerate(cell.lines):
            text = _shortened(_writable(line))
            draw.text((left, top + SIDE + number * LINE), text, fill=INK if number else MUTED, font=_font())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, format="PNG")
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror}; choose a writable place") from error


def _fitted(picture: Image.Image) -> Image.Image:
    """Shrunk to the square, or enlarged by a whole factor, so that every stored pixel shows."""
    factor = min(SIDE / picture.width, SIDE / picture.height)
    if factor < 1:
        return picture.resize((max(1, int(picture.width * factor)), max(1, int(picture.height * factor))))
    return picture.resize((picture.width * int(factor), picture.height * int(factor)), Image.Resampling.NEAREST)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)


def _writable(text: str) -> str:
    """Without what Pillow's bitmap font, which stands in where FreeType is missing, cannot draw."""
    text = " ".join(text.split())
    return text if isinstance(_font(), ImageFont.FreeTypeFont) else text.encode("latin-1", "replace").decode("latin-1")


def _shortened(text: str) -> str:
    """Cut off in front, where paths say least, so that it fits under its picture."""
    if _font().getlength(text) <= SIDE:
        return text
    while text and _font().getlength(f"…{text}") > SIDE:
        text = text[1:]
    return f"…{text}"
