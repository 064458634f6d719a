"""The prepared files, written as a stream; the folder appears whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import shutil
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, final

import numpy as np

from compress.data.manifest import MANIFEST_FILE, SplitInfo, Storage, StoredFile
from compress.data.source import SplitName
from compress.errors import DataError
from compress.fingerprint import file_sha256


class StoredImage(NamedTuple):
    """One image on its way to disk."""

    file: str
    label: int
    sha256: bytes
    content: bytes
    """Pixels H W 3 or an image file's bytes."""


class SplitLayout(NamedTuple):
    """What must be known of a split before its first image is written."""

    num_images: int
    height: int
    width: int
    storage: Storage
    classes: Sequence[str]


@contextmanager
def replaced_folder(folder: Path) -> Generator[Path]:
    """A scratch folder beside `folder` that takes its place when the context ends without an error.

    Raises:
        DataError: something else than a prepared data set stands there, or it can not be written.
    """
    folder = folder.resolve()
    _check_replaceable(folder)
    partial, previous = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "previous"))
    try:
        for leftover in (partial, previous):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            folder.rename(previous)
        partial.rename(folder)
        shutil.rmtree(previous, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"can not write {error.filename or folder}: {error.strerror}; choose a writable folder with enough space"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / MANIFEST_FILE).is_file()):
        raise DataError(f"{folder} holds something else than a prepared data set; choose another folder or delete it")


def write_split(folder: Path, split: SplitName, *, layout: SplitLayout, images: Iterable[StoredImage]) -> SplitInfo:
    """Write the files of one split, image by image."""
    labels = np.empty(layout.num_images, dtype=np.int64)
    offsets = np.zeros(layout.num_images + 1, dtype=np.int64)
    is_array = layout.storage == "arrays"
    pixels_path = folder / f"{split}.images.{'npy' if is_array else 'bin'}"
    files_path = folder / f"{split}.files.csv"
    with pixels_path.open("wb") as raw_file, files_path.open("w", encoding="utf-8", newline="") as table:
        pixels = _HashedFile(raw_file)
        if is_array:
            shape = (layout.num_images, layout.height, layout.width, 3)
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(pixels, header)
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(["index", "file", "class", "sha256"])
        for index, image in enumerate(images):
            pixels.write(image.content)
            offsets[index + 1] = offsets[index] + len(image.content)
            labels[index] = image.label
            rows.writerow([index, image.file, layout.classes[image.label], image.sha256.hex()])
    files = {pixels_path.name: pixels.stored_file(), files_path.name: _stored_file(files_path)}
    arrays = {"labels": labels} if is_array else {"labels": labels, "offsets": offsets}
    for name, array in arrays.items():
        path = folder / f"{split}.{name}.npy"
        np.save(path, array)
        files[path.name] = _stored_file(path)
    counts = np.bincount(labels, minlength=len(layout.classes)).tolist()
    return SplitInfo(
        num_images=layout.num_images,
        images_per_class=dict(zip(layout.classes, counts, strict=True)),
        files=dict(sorted(files.items())),
    )


@final
class _HashedFile:
    """Hashes what it writes, so that large files are not read again."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._num_bytes = 0

    def write(self, content: bytes) -> int:
        self._hash.update(content)
        self._num_bytes += len(content)
        return self._file.write(content)

    def stored_file(self) -> StoredFile:
        return StoredFile(size_bytes=self._num_bytes, sha256=self._hash.hexdigest())


def _stored_file(path: Path) -> StoredFile:
    return StoredFile(size_bytes=path.stat().st_size, sha256=file_sha256(path))
