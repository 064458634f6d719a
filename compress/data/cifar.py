"""CIFAR-10 and CIFAR-100 as their authors published them: 50,000 train and 10,000 test images of 32 x 32 px.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. The archive is checked by SHA-256
and read in place; of a folder that somebody unpacked, each file is checked by the MD5 that torchvision publishes. The
files are pickles of Python 2: they are read by an unpickler that can make arrays and nothing else.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import numpy as np
from jaxtyping import UInt8

from compress.data.download import PublishedFile, check_published, fetch
from compress.data.source import ImageCollection, RawImage, Source, SourceImage, SplitName
from compress.errors import DataError

SIDE = 32

Pictures = UInt8[np.ndarray, "N H W 3"]


class Publication(NamedTuple):
    """A data set's files, and what they call things."""

    archive: PublishedFile
    folder: str
    """Inside the archive, and where it was unpacked."""
    files: Mapping[SplitName, tuple[str, ...]]
    names_file: str
    labels_key: str
    names_key: str
    md5: Mapping[str, str]
    """Of each file in the folder."""


CIFAR10 = Publication(
    archive=PublishedFile(
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        size_bytes=170_498_071,
    ),
    folder="cifar-10-batches-py",
    files={"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)},
    names_file="batches.meta",
    labels_key="labels",
    names_key="label_names",
    md5={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
)
CIFAR100 = Publication(
    archive=PublishedFile(
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        size_bytes=169_001_437,
    ),
    folder="cifar-100-python",
    files={"train": ("train",), "test": ("test",)},
    names_file="meta",
    labels_key="fine_labels",
    names_key="fine_label_names",
    md5={
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
)


@final
class Cifar10(Source):
    """CIFAR-10 with its official train and test split."""

    name: Literal["cifar10"] = "cifar10"
    folder: Path = Path("data/torchvision")
    """Folder with cifar-10-python.tar.gz or the unpacked cifar-10-batches-py, or the place to download to."""
    download: bool = True
    """Download the archive when the folder has neither."""

    def open(self) -> AbstractContextManager[ImageCollection]:
        return _open(self, CIFAR10)


@final
class Cifar100(Source):
    """CIFAR-100, fine labels, with its official train and test split."""

    name: Literal["cifar100"] = "cifar100"
    folder: Path = Path("data/torchvision")
    """Folder with cifar-100-python.tar.gz or the unpacked cifar-100-python, or the place to download to."""
    download: bool = True
    """Download the archive when the folder has neither."""

    def open(self) -> AbstractContextManager[ImageCollection]:
        return _open(self, CIFAR100)


@contextmanager
def _open(source: Cifar10 | Cifar100, publication: Publication) -> Generator[ImageCollection]:
    read_file = _reader(source, publication)
    pixels: list[Pictures] = []
    images: list[SourceImage] = []
    for split, names in publication.files.items():
        parts = [read_file(name) for name in names]
        labels = [int(label) for part in parts for label in part[publication.labels_key]]
        pixels += [_pixels(part["data"]) for part in parts]
        images += [SourceImage(f"{split}/{place:05d}", label, split) for place, label in enumerate(labels)]
    everything = np.concatenate(pixels)

    def read(place: int) -> RawImage:
        return everything[place]

    yield ImageCollection(tuple(read_file(publication.names_file)[publication.names_key]), images, read)


def _reader(source: Cifar10 | Cifar100, publication: Publication) -> Callable[[str], dict[str, Any]]:
    """How to read one file of the data set, from the folder, the archive or the network."""
    folder = source.folder.expanduser()
    unpacked, archive = folder / publication.folder, folder / publication.archive.name
    if unpacked.is_dir():
        return lambda name: _from_folder(unpacked / name, publication.md5[name])
    if not archive.is_file():
        if not source.download:
            raise DataError(f"no {source.name} in {source.folder}: unpack {archive.name} there, or set download: true")
        try:
            fetch(publication.archive, archive)
        except DataError as error:
            raise DataError(
                f"no {source.name} in {source.folder}, and downloading it failed ({error}): put {archive.name} there "
                "by hand, or connect this machine to the network"
            ) from error
    try:
        check_published(archive, publication.archive)
    except DataError as error:
        raise DataError(f"{error}; fetch it again") from error
    members = _members(archive, publication)
    return lambda name: _unpickled(members[name])


def _members(archive: Path, publication: Publication) -> dict[str, bytes]:
    """The files of the archive, in memory: nothing is unpacked to disk, wherever its names may lead."""
    found: dict[str, bytes] = {}
    with tarfile.open(archive, "r:gz") as packed:
        for member in packed:
            folder, _, name = member.name.rpartition("/")
            content = packed.extractfile(member) if folder == publication.folder and name in publication.md5 else None
            if content is not None:
                found[name] = content.read()
    return found


def _from_folder(path: Path, md5: str) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} can not be read ({error.strerror}); unpack the archive again") from error
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise DataError(f"{path} is not the published file: its MD5 is not {md5}; unpack the archive again")
    return _unpickled(content)


def _pixels(rows: np.ndarray) -> Pictures:
    """Rows of all red, then all green, then all blue values as images."""
    return np.ascontiguousarray(rows.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))


def _unpickled(content: bytes) -> dict[str, Any]:
    return _ArraysOnly(io.BytesIO(content), encoding="latin1").load()


@final
class _ArraysOnly(pickle.Unpickler):
    """Makes arrays, and refuses whatever else a pickle asks for."""

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle may call."""
        if (module.replace("numpy._core", "numpy.core"), name) in {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise DataError(f"a file of CIFAR asks for {module}.{name}, which could run code; nothing was run")
