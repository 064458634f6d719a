"""From a source to the prepared folder that manifest.py documents.

Two passes: every image is decoded once, which finds what is unreadable, the contents and their sums; then each split
is written as a stream. The same input with the same settings gives the same files, byte for byte.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

from PIL import Image

from compress.data import DataSettings
from compress.data.channel_sums import ChannelStatistics, channel_statistics
from compress.data.decoding import UnreadableImageError
from compress.data.duplicates import report_duplicates
from compress.data.examination import Examination, encoded_content, examine
from compress.data.manifest import Manifest, SplitInfo
from compress.data.source import ImageCollection, SplitName
from compress.data.splits import Assignment, Content, assign_splits, check_enough_images
from compress.data.writing import SplitLayout, StoredImage, replaced_folder, write_split
from compress.errors import DataError

_IMAGES_PER_REPORT = 32


def prepare(settings: DataSettings, folder: Path, *, report: Callable[[int, int], None] | None = None) -> Manifest:
    """Write the prepared data set and return its manifest; the folder is replaced only when all went well.

    `report` is called now and then with (steps done, steps in all); each image is two steps.

    Raises:
        DataError: the source is missing, its layout or too many of its images can not be used, a class is too small
            for the splits, or the folder can not be written.
    """
    with settings.source.open() as collection, replaced_folder(folder) as partial, _quiet_pillow():
        check_enough_images(collection.images, collection.classes, settings=settings)
        progress = _Progress(2 * len(collection.images), report)
        scratch = partial / "scratch"
        examination = examine(collection, settings, scratch=scratch, advance=progress.advance)
        _check_complete(collection, examination)
        contents = [
            Content(sha256, origin_sha256, image.label, image.split)
            for sha256, origin_sha256, image in zip(
                examination.hashes, examination.origin_hashes, examination.images, strict=True
            )
        ]
        assignment = assign_splits(contents, collection.classes, settings=settings)
        layout = _Layout(collection.classes, examination, assignment)
        with _stored_contents(collection, examination, scratch=scratch) as content:
            splits: dict[SplitName, SplitInfo] = {
                split: write_split(
                    partial,
                    split,
                    layout=layout.of(split),
                    images=layout.images(split, content, progress=progress),
                )
                for split in assignment.members
            }
        scratch.unlink()
        manifest = _manifest(settings, collection, examination=examination, assignment=assignment, splits=splits)
        manifest.write(partial)
    progress.finish()
    return manifest


@final
@dataclass
class _Progress:
    """Counts steps and passes the count on, not too often."""

    total: int
    report: Callable[[int, int], None] | None
    done: int = 0

    def advance(self) -> None:
        self.done += 1
        if self.report is not None and self.done % _IMAGES_PER_REPORT == 0:
            self.report(self.done, self.total)

    def finish(self) -> None:
        if self.report is not None:
            self.report(self.total, self.total)


@final
@dataclass(frozen=True)
class _Layout:
    """The second pass: which image goes where."""

    classes: tuple[str, ...]
    examination: Examination
    assignment: Assignment

    def of(self, split: SplitName) -> SplitLayout:
        form = self.examination.form
        size = form.preprocessing.height, form.preprocessing.width
        return SplitLayout(len(self.assignment.members[split]), *size, form.storage, self.classes)

    def images(
        self, split: SplitName, content: Callable[[int], bytes], *, progress: _Progress
    ) -> Iterator[StoredImage]:
        for row in self.assignment.members[split]:
            image = self.examination.images[row]
            yield StoredImage(image.file, image.label, self.examination.hashes[row], content(row))
            progress.advance()


@contextmanager
def _stored_contents(
    collection: ImageCollection, examination: Examination, *, scratch: Path
) -> Generator[Callable[[int], bytes]]:
    """What is stored of the image at a place among the readable ones."""
    form = examination.form
    num_bytes = form.preprocessing.height * form.preprocessing.width * 3
    with scratch.open("rb") as pixels:

        def read_pixels(row: int) -> bytes:
            pixels.seek(row * num_bytes)
            return pixels.read(num_bytes)

        def read_file(row: int) -> bytes:
            file = examination.images[row].file
            try:
                content = encoded_content(collection.read(examination.places[row]))
            except UnreadableImageError as error:
                raise DataError(f"{file} was readable a moment ago and is no longer ({error}); run again") from error
            if hashlib.sha256(content).digest() != examination.hashes[row]:
                raise DataError(f"{file} changed while it was being prepared; run again when nothing writes there")
            return content

        yield read_pixels if form.storage == "arrays" else read_file


def _check_complete(collection: ImageCollection, examination: Examination) -> None:
    """Every class, and every split that the source brings, must have kept an image.

    Raises:
        DataError: one has none left.
    """
    labels = {image.label for image in examination.images}
    lost = [name for label, name in enumerate(collection.classes) if label not in labels]
    if lost:
        raise DataError(f"no image of class {lost[0]} is readable; repair its files or remove the class")
    splits = {image.split for image in collection.images} - {image.split for image in examination.images}
    if splits:
        raise DataError(f"no image of the {splits.pop()} split is readable; repair its files")


def _manifest(
    settings: DataSettings,
    collection: ImageCollection,
    *,
    examination: Examination,
    assignment: Assignment,
    splits: dict[SplitName, SplitInfo],
) -> Manifest:
    statistics = _train_statistics(examination, assignment)
    preprocessing = examination.form.preprocessing
    manifest = Manifest(
        classes=collection.classes,
        height=preprocessing.height,
        width=preprocessing.width,
        storage=examination.form.storage,
        mean=statistics.mean,
        std=statistics.std,
        splits=splits,
        preprocessing=preprocessing,
        skipped=examination.skipped,
        num_ignored_files=collection.num_ignored_files,
        duplicates=report_duplicates(
            examination.images,
            examination.hashes,
            assignment=assignment,
            classes=collection.classes,
            policy=settings.duplicates,
        ),
        settings=settings.model_dump(mode="json"),
        fingerprint="",
    )
    return manifest.model_copy(update={"fingerprint": manifest.compute_fingerprint()})


def _train_statistics(examination: Examination, assignment: Assignment) -> ChannelStatistics:
    """Over train only: neither validation nor test may shape what a network sees."""
    rows = list(assignment.members["train"])
    form = examination.form.preprocessing
    return channel_statistics(examination.sums[rows].sum(axis=0), len(rows) * form.height * form.width)


@contextmanager
def _quiet_pillow() -> Generator[None]:
    # Pillow's warnings name no file. Of size, max_pixels decides and lists what it skips; of damaged metadata, it is
    # enough that the pixels decode.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        yield
