"""Reading what prepare wrote: images by index, memory-mapped or decoded when asked, never all at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError

from compress.data.decoding import LARGEST_MAX_PIXELS, Pixels, UnreadableImageError, decode
from compress.data.manifest import MANIFEST_FILE, Manifest, StoredFile
from compress.data.preprocessing import Preprocessing, preprocess
from compress.data.source import SplitName
from compress.data.threads import map_in_threads
from compress.errors import ArtifactError
from compress.fingerprint import file_sha256
from compress.types import ByteImages, ImageArray, IndexArray, LabelArray, Labels

LARGEST_HASHED_FILE = 256_000_000
"""Bytes. Larger files are checked by size when a data set is loaded, smaller ones by SHA-256: about 0.2 s at most."""

CURE = "run the prepare stage"


class PreparedSplit(ABC):
    """The images of one split by index, and their labels."""

    labels: LabelArray
    """Places in the manifest's classes."""
    height: int
    """Pixels of the images, after preprocessing."""
    width: int
    """Pixels of the images, after preprocessing."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def images(self, indices: IndexArray) -> ByteImages:
        """Images as evaluation sees them: after the manifest's preprocessing.

        Raises:
            IndexError: an index is not in 0..len - 1.
            ArtifactError: a stored image can not be decoded.
        """

    @abstractmethod
    def picture(self, index: int) -> Image.Image:
        """One image as it is stored, before resizing: RGB, upright, of any size. Raises as `images` does."""

    def batches(self, batch_size: int) -> Iterator[tuple[ByteImages, Labels]]:
        """The whole split in order; the last batch may be smaller."""
        for start in range(0, len(self), batch_size):
            indices = np.arange(start, min(start + batch_size, len(self)), dtype=np.int64)
            yield self.images(indices), torch.from_numpy(self.labels[indices])

    def check_indices(self, indices: IndexArray) -> None:
        """Raise IndexError for an index that is not in 0..len - 1: numpy would count negative ones from the end."""
        if len(indices) and not (int(indices.min()) >= 0 and int(indices.max()) < len(self)):
            raise IndexError(f"indices {indices.min()}..{indices.max()} are not all in 0..{len(self) - 1}")


@final
class ArraySplit(PreparedSplit):
    """Decoded pixels in a memory-mapped file."""

    def __init__(self, pixels: ImageArray, labels: LabelArray) -> None:
        self._pixels = pixels
        self.labels = labels
        self.height, self.width = pixels.shape[1], pixels.shape[2]

    def images(self, indices: IndexArray) -> ByteImages:
        self.check_indices(indices)
        return torch.from_numpy(self._pixels[indices])

    def picture(self, index: int) -> Image.Image:
        self.check_indices(np.array([index]))
        return Image.fromarray(self._pixels[index])


@final
class EncodedSplit(PreparedSplit):
    """Image files, concatenated in a memory-mapped file, decoded in threads when asked for."""

    def __init__(self, path: Path, *, offsets: np.ndarray, labels: LabelArray, preprocessing: Preprocessing) -> None:
        self._path = path
        self._content = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
        self._offsets = offsets
        self._preprocessing = preprocessing
        self.labels = labels
        self.height, self.width = preprocessing.height, preprocessing.width

    def images(self, indices: IndexArray) -> ByteImages:
        self.check_indices(indices)
        return stack_in_threads(self, indices, transform=lambda picture, _: preprocess(picture, self._preprocessing))

    def picture(self, index: int) -> Image.Image:
        self.check_indices(np.array([index]))
        content = self._content[self._offsets[index] : self._offsets[index + 1]].tobytes()
        background = self._preprocessing.alpha_background
        try:
            return decode(content, max_pixels=LARGEST_MAX_PIXELS, alpha_background=background)
        except UnreadableImageError as error:
            raise ArtifactError(f"image {index} of {self._path} {error}: the file is damaged; {CURE} again") from error


def stack_in_threads(
    split: PreparedSplit, indices: IndexArray, *, transform: Callable[[Image.Image, int], Pixels]
) -> ByteImages:
    """Pictures of a split, each transformed to the split's size; `transform` also gets the place in the batch."""
    stack = np.empty((len(indices), split.height, split.width, 3), dtype=np.uint8)

    def fill(place: int) -> None:
        stack[place] = transform(split.picture(int(indices[place])), place)

    for _ in map_in_threads(fill, range(len(indices))):
        pass
    return torch.from_numpy(stack)


@final
@dataclass(frozen=True)
class PreparedData:
    """A verified prepared data set."""

    folder: Path
    manifest: Manifest

    def split(self, name: SplitName) -> PreparedSplit:
        """Map one split into memory."""
        labels = np.load(self.folder / f"{name}.labels.npy", allow_pickle=False)
        if self.manifest.storage == "arrays":
            pixels = np.load(self.folder / f"{name}.images.npy", mmap_mode="r", allow_pickle=False)
            return ArraySplit(np.asarray(pixels), labels)
        offsets = np.load(self.folder / f"{name}.offsets.npy", allow_pickle=False)
        path = self.folder / f"{name}.images.bin"
        return EncodedSplit(path, offsets=offsets, labels=labels, preprocessing=self.manifest.preprocessing)


def load_prepared(folder: Path) -> PreparedData:
    """Read the manifest and check every file against it: sizes all, contents up to 256 MB a file.

    Raises:
        ArtifactError: a file is missing, damaged, changed or of another format version.
    """
    path = folder / MANIFEST_FILE
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError(
            f"no prepared data in {folder}: {path.name} can not be read ({error.strerror}); {CURE}"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "its JSON"
        raise ArtifactError(
            f"{path} is damaged or of another version ({place}: {first['msg']}); {CURE} again"
        ) from error
    if manifest.compute_fingerprint() != manifest.fingerprint:
        raise ArtifactError(f"{path} was changed after it was written: its fingerprint does not fit; {CURE} again")
    for info in manifest.splits.values():
        for name, stored in info.files.items():
            _verify(folder / name, stored)
    return PreparedData(folder, manifest)


def _verify(path: Path, stored: StoredFile) -> None:
    try:
        size_bytes = path.stat().st_size
    except OSError as error:
        raise ArtifactError(f"{path} is missing; {CURE} again") from error
    if size_bytes != stored.size_bytes:
        raise ArtifactError(f"{path} has {size_bytes} bytes, {stored.size_bytes} were written; {CURE} again")
    if size_bytes <= LARGEST_HASHED_FILE and file_sha256(path) != stored.sha256:
        raise ArtifactError(f"{path} is not the file that was written (SHA-256 differs); {CURE} again")
