"""A sheet holds every picture with its lines, whatever the sizes and the writing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress.errors import ArtifactError
from compress.picture_sheet import COLUMNS, SIDE, Cell, write_sheet

RED = (250, 10, 10)


def picture(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, RED)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as sheet:
        return np.asarray(sheet.convert("RGB"))


@pytest.mark.parametrize("size", [(8, 8), (32, 16), (400, 300), (5000, 3), (1, 900)])
def test_picture_of_any_size_fits_its_square(tmp_path: Path, size: tuple[int, int]) -> None:
    write_sheet(tmp_path / "sheet.png", [Cell(picture(size), ("a line",))], title="one")
    found = (pixels(tmp_path / "sheet.png") == RED).all(axis=2)
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    assert 1 <= len(rows) <= SIDE
    assert 1 <= len(columns) <= SIDE
    assert max(len(rows), len(columns)) > SIDE // 2


def test_small_pictures_keep_their_pixels(tmp_path: Path) -> None:
    checkered = Image.fromarray(np.indices((8, 8)).sum(axis=0).astype(np.uint8) % 2 * 255).convert("RGB")
    write_sheet(tmp_path / "sheet.png", [Cell(checkered, ())], title="")
    assert set(map(tuple, pixels(tmp_path / "sheet.png").reshape(-1, 3).tolist())) == {(0, 0, 0), (255, 255, 255)}


def test_cells_stand_in_rows(tmp_path: Path) -> None:
    heights = []
    for count in (COLUMNS, COLUMNS + 1):
        write_sheet(tmp_path / "sheet.png", [Cell(picture((9, 9)), ("x", "y"))] * count, title="many")
        heights.append(pixels(tmp_path / "sheet.png").shape[0])
    assert heights[1] > heights[0] + SIDE


def test_sheet_without_pictures_holds_its_title(tmp_path: Path) -> None:
    write_sheet(tmp_path / "sheet.png", [], title="0 of 12 pictures answered differently")
    assert (pixels(tmp_path / "sheet.png") < 128).any()


def test_any_writing_and_length_is_drawn(tmp_path: Path) -> None:
    lines = ("路径/图片.png", "a" * 500, "two\nlines", "")
    write_sheet(tmp_path / "sheet.png", [Cell(picture((9, 9)), lines)], title="ü" * 20)


def test_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="choose a writable place"):
        write_sheet(tmp_path / "file" / "sheet.png", [], title="")
