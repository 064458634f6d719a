"""The user's own images: a folder or zip archive of class folders, in any format that Pillow decodes."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, final

from compress.data.class_folders import sort_into_classes
from compress.data.file_tree import open_file_tree
from compress.data.source import ImageCollection, RawImage, Source
from compress.errors import DataError


@final
class ImageFolder(Source):
    """Class folders of images, with or without train, val and test folders around them; a folder or a .zip."""

    name: Literal["image_folder"] = "image_folder"
    path: Path
    """The folder or zip archive. Archives are read in place, never unpacked to disk."""

    @contextmanager
    def open(self) -> Generator[ImageCollection]:
        with open_file_tree(self.path) as tree:
            try:
                found = sort_into_classes(tree)
            except DataError as error:
                raise DataError(f"{self.path}: {error}") from error

            def read(place: int) -> RawImage:
                return tree.read(found.images[place].file)

            yield ImageCollection(found.classes, found.images, read, found.num_ignored_files)
