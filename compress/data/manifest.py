"""The prepared data set on disk, and manifest.json, which describes it.

    manifest.json              everything below; its fingerprint stands for the whole data set
    <split>.images.npy         arrays: uint8 (N, H, W, 3), pixels after preprocessing, to be memory-mapped
    <split>.images.bin         encoded: the image files' own bytes, one after the other
    <split>.offsets.npy        encoded: int64 (N + 1,), image i is images.bin[offsets[i] : offsets[i + 1]]
    <split>.labels.npy         int64 (N,), places in `classes`
    <split>.files.csv          index, file (path in the source), class, sha256 (of the stored pixels or bytes)

Splits are train, validation, test. Images stand in the order of their paths in the source, so classes follow one
another: whoever wants a few images of all classes draws them, instead of taking the first ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from compress.data.preprocessing import Preprocessing
from compress.data.source import SplitName
from compress.files import write_json
from compress.fingerprint import fingerprint
from compress.settings import NonNegativeInt, PositiveInt, Settings, Sha256

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1

Storage = Literal["arrays", "encoded"]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]


class StoredFile(Settings):
    """One file of a split."""

    size_bytes: NonNegativeInt
    sha256: Sha256


class SplitInfo(Settings):
    """What a split holds."""

    num_images: PositiveInt
    images_per_class: dict[str, NonNegativeInt]
    """Every class, in the order of `classes`; zero is possible only in a draw that is not stratified."""
    files: dict[str, StoredFile]
    """By file name."""


class SkippedFile(Settings):
    """An image that could not be read."""

    file: str
    """Path in the source."""
    reason: str


class Copy(Settings):
    """One of several images with the same content."""

    file: str
    split: SplitName
    class_name: str


class CopyGroup(Settings):
    """Images with the same content that stand in several splits or several classes."""

    sha256: Sha256
    copies: tuple[Copy, ...]


class DuplicateReport(Settings):
    """Images with the same content: the same pixels in arrays, the same bytes in encoded storage."""

    policy: Literal["report", "drop_from_train"]
    num_groups: NonNegativeInt
    """Contents that occur more than once."""
    num_groups_across_splits: NonNegativeInt
    """Of these, in more than one split: test or validation has seen train."""
    num_groups_across_classes: NonNegativeInt
    """Of these, with more than one label: at most one can be right."""
    num_dropped_from_train: NonNegativeInt
    examples: tuple[CopyGroup, ...]
    """Groups across splits or classes, the first hundred."""


class Manifest(Settings):
    """A prepared data set."""

    format_version: Literal[1] = FORMAT_VERSION
    classes: tuple[str, ...]
    """Names; a label is a place in it."""
    height: PositiveInt
    """Pixels of the networks' input."""
    width: PositiveInt
    """Pixels of the networks' input."""
    storage: Storage
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    """Per channel over all pixels of all train images after preprocessing, in [0, 1]; exact, as are the sums."""
    std: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    """The same, population standard deviation; 1 for a channel that never varies, so that one can divide by it."""
    splits: dict[SplitName, SplitInfo]
    preprocessing: Preprocessing
    skipped: tuple[SkippedFile, ...]
    num_ignored_files: NonNegativeInt
    """Files of the source that do not look like images."""
    duplicates: DuplicateReport
    settings: dict[str, JsonValue]
    """The data settings it was prepared with."""
    fingerprint: str
    """SHA-256 over all that a later result can depend on: contents and order of the splits, classes, preprocessing.
    The same images from a folder or from an archive, here or elsewhere, give the same one."""

    @property
    def source(self) -> dict[str, JsonValue]:
        """Settings of the source."""
        source = self.settings["source"]
        assert isinstance(source, dict)
        return source

    @property
    def seed(self) -> int:
        """Seed of the splits."""
        seed = self.settings["seed"]
        assert isinstance(seed, int)
        return seed

    def compute_fingerprint(self) -> str:
        """What `fingerprint` must be."""
        fields = self.model_dump(
            mode="json",
            include={"format_version", "classes", "height", "width", "storage", "mean", "std", "preprocessing"},
        )
        contents: dict[str, JsonValue] = {
            f"{split}/{name}": stored.sha256
            for split, info in self.splits.items()
            for name, stored in info.files.items()
            if not name.endswith(".csv")  # where an image came from changes no result
        }
        return fingerprint({**fields, "contents": contents})

    def write(self, folder: Path) -> None:
        """Write manifest.json."""
        write_json(folder / MANIFEST_FILE, self.model_dump(mode="json"))
