"""Prepared data sets, and what lies on disk of them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from compress.data import DataSettings, ImageFolder


def folder_settings(path: Path, **values: Any) -> DataSettings:
    """Settings for a folder or archive of class folders."""
    return DataSettings(source=ImageFolder(path=path), **values)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def table(folder: Path, split: str) -> list[dict[str, str]]:
    """The rows of a split's files.csv."""
    with (folder / f"{split}.files.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
