"""What a source of labelled images is.

A source is a frozen setting; opening it gives a collection: a listing that is cheap, and a function that reads one
image when asked. Nothing else of a source is known to the rest, so a new one is a file and a place in the union.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple

from compress.data.decoding import Pixels
from compress.settings import Settings

SplitName = Literal["train", "validation", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "validation", "test")

RawImage = bytes | Pixels
"""An image file's content, or the pixels of a source that has no files."""


class SourceImage(NamedTuple):
    """One labelled image, not yet read."""

    file: str
    """Path inside the source, with slashes."""
    label: int
    """Place of its class in the collection's classes."""
    split: SplitName | None
    """The split that the source puts it in; None where the source has no splits."""


@dataclass(frozen=True)
class ImageCollection:
    """The images of an opened source, in an order that never changes."""

    classes: tuple[str, ...]
    images: Sequence[SourceImage]
    read: Callable[[int], RawImage]
    """The image at a place in `images`. Callable from several threads; raises UnreadableImageError or DataError."""
    num_ignored_files: int = 0
    """Files that do not look like images: other endings, hidden files."""


class Source(Settings, ABC):
    """Where labelled images come from."""

    @abstractmethod
    def open(self) -> AbstractContextManager[ImageCollection]:
        """List the images; read only inside the context.

        Raises:
            DataError: it is not there, or its layout can not be understood.
        """
