"""A folder of images that is ready to prepare."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compress.data.pictures import class_files, write_files


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twenty different pictures of 12 x 12 px in two classes."""
    return write_files(tmp_path / "images", class_files())
