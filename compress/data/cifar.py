"""CIFAR-10 and CIFAR-100 through torchvision: 50,000 train and 10,000 test images of 32 x 32 px.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. torchvision checks the files' MD5.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, final

from compress.data.source import ImageCollection, RawImage, Source, SourceImage, SplitName
from compress.errors import DataError


@final
class Cifar10(Source):
    """CIFAR-10 with its official train and test split."""

    name: Literal["cifar10"] = "cifar10"
    folder: Path = Path("data/torchvision")
    """Folder with cifar-10-python.tar.gz or the unpacked cifar-10-batches-py, or the place to download to."""
    download: bool = True
    """Unpack the archive, and download it first when the folder has none."""

    def open(self) -> AbstractContextManager[ImageCollection]:
        from torchvision.datasets import CIFAR10

        return _open_both(lambda train: CIFAR10(self.folder, train, download=self.download), self)


@final
class Cifar100(Source):
    """CIFAR-100, fine labels, with its official train and test split."""

    name: Literal["cifar100"] = "cifar100"
    folder: Path = Path("data/torchvision")
    """Folder with cifar-100-python.tar.gz or the unpacked cifar-100-python, or the place to download to."""
    download: bool = True
    """Unpack the archive, and download it first when the folder has none."""

    def open(self) -> AbstractContextManager[ImageCollection]:
        from torchvision.datasets import CIFAR100

        return _open_both(lambda train: CIFAR100(self.folder, train, download=self.download), self)


@contextmanager
def _open_both(load: Callable[[bool], Any], source: Cifar10 | Cifar100) -> Generator[ImageCollection]:
    try:
        parts: dict[SplitName, Any] = {"train": load(True), "test": load(False)}
    except (OSError, RuntimeError) as error:  # an URLError is an OSError; a wrong MD5 is a RuntimeError
        raise DataError(_absence(source, error)) from error
    images = [
        SourceImage(f"{split}/{place:05d}", int(label), split)
        for split, part in parts.items()
        for place, label in enumerate(part.targets)
    ]
    num_train = len(parts["train"].targets)

    def read(place: int) -> RawImage:
        return parts["train"].data[place] if place < num_train else parts["test"].data[place - num_train]

    yield ImageCollection(tuple(parts["train"].classes), images, read)


def _absence(source: Cifar10 | Cifar100, error: Exception) -> str:
    reason = " ".join(str(error).split())
    archive = "cifar-10-python.tar.gz" if isinstance(source, Cifar10) else "cifar-100-python.tar.gz"
    if source.download:
        return (
            f"no {source.name} in {source.folder}, and downloading it failed ({reason}): "
            f"put {archive} there by hand, or connect this machine to the network"
        )
    return f"no {source.name} in {source.folder} ({reason}): unpack {archive} there, or set download: true"
