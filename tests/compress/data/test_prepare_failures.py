"""What prepare skips, what it refuses, and that a failed or killed one leaves nothing behind."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from compress.data import DataSettings, Source
from compress.data.prepare import prepare
from compress.data.prepared import load_prepared
from compress.data.source import ImageCollection, RawImage, SourceImage
from compress.errors import DataError
from tests.compress.data.pictures import class_files, encoded, noise, smooth, write_files
from tests.compress.data.prepared_folders import contents, folder_settings, table

REPOSITORY = Path(__file__).parents[3]


def damage(images: Path) -> dict[str, bytes]:
    """Three images that can not be read, as they are met in practice."""
    jpeg = encoded(smooth(1, 64, 64), "JPEG")
    bad = {"apple/000.jpg": jpeg[: len(jpeg) // 2], "apple/zz.png": b"I am a text file.", "pear/005.png": b""}
    write_files(images, bad)
    return bad


def test_unreadable_images_are_an_error_by_default(images: Path, tmp_path: Path) -> None:
    damage(images)
    with pytest.raises(DataError) as caught:
        prepare(folder_settings(images), tmp_path / "prepared")
    message = str(caught.value)
    assert message.startswith("3 of 22 images can not be used: apple/000.jpg: can not be decoded: ")
    assert "apple/zz.png: not an image" in message
    assert "pear/005.png: the file is empty" in message
    assert message.endswith("repair or delete them, or raise max_skipped_fraction")
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize("storage", ["arrays", "encoded"])
def test_unreadable_images_within_the_limit_are_listed_and_skipped(
    images: Path, tmp_path: Path, storage: Literal["arrays", "encoded"]
) -> None:
    bad = damage(images)
    manifest = prepare(folder_settings(images, max_skipped_fraction=3 / 22, storage=storage), tmp_path / "prepared")
    assert {skipped.file for skipped in manifest.skipped} == set(bad)
    stored = [row["file"] for split in manifest.splits for row in table(tmp_path / "prepared", split)]
    assert len(stored) == 19
    assert not set(stored) & set(bad)
    train = load_prepared(tmp_path / "prepared").split("train").images(np.arange(manifest.splits["train"].num_images))
    assert manifest.mean == pytest.approx(train.numpy().reshape(-1, 3).mean(axis=0) / 255, abs=1e-14)
    for split in manifest.splits:  # the skipped ones shift nothing
        part = load_prepared(tmp_path / "prepared").split(split)
        for place, row in enumerate(table(tmp_path / "prepared", split)):
            pixels = part.images(np.array([place])).numpy()[0]
            assert np.array_equal(pixels, np.asarray(Image.open(images / row["file"])))


def test_one_unreadable_image_above_the_limit_is_an_error(images: Path, tmp_path: Path) -> None:
    damage(images)
    with pytest.raises(DataError, match="3 of 22 images can not be used"):
        prepare(folder_settings(images, max_skipped_fraction=2.9 / 22), tmp_path / "prepared")


def test_long_lists_of_unreadable_images_are_cut(images: Path, tmp_path: Path) -> None:
    write_files(images, {f"apple/bad{number}.png": b"no" for number in range(9)})
    with pytest.raises(DataError, match=r"9 of 29 .*bad4\.png: not an image[^;]*; and 4 more \("):
        prepare(folder_settings(images), tmp_path / "prepared")


def test_no_readable_image_at_all_is_an_error(tmp_path: Path) -> None:
    images = write_files(tmp_path / "images", {f"{name}/{place}.png": b"no" for name in "xy" for place in range(3)})
    with pytest.raises(DataError, match=r"6 of 6 images can not be used: x/0\.png: not an image"):
        prepare(folder_settings(images, max_skipped_fraction=1.0), tmp_path / "prepared")


def test_class_that_loses_all_images_is_an_error(images: Path, tmp_path: Path) -> None:
    write_files(images, {f"quince/{place}.png": b"no" for place in range(3)})
    with pytest.raises(DataError, match="no image of class quince is readable"):
        prepare(folder_settings(images, max_skipped_fraction=0.5), tmp_path / "prepared")


def test_given_split_that_loses_all_images_is_not_carved_anew(tmp_path: Path) -> None:
    files = class_files(prefix="train/") | {f"test/{name}/1.png": b"no" for name in ("apple", "pear")}
    images = write_files(tmp_path / "images", files)
    with pytest.raises(DataError, match="no image of the test split is readable"):
        prepare(folder_settings(images, max_skipped_fraction=0.5), tmp_path / "prepared")


def test_bomb_is_skipped_and_not_decoded(images: Path, tmp_path: Path) -> None:
    bomb = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(bomb, format="PNG")  # 18 kB; 432 MB as RGB
    write_files(images, {"pear/bomb.png": bomb.getvalue()})
    tracemalloc.start()
    manifest = prepare(folder_settings(images, max_skipped_fraction=0.1), tmp_path / "prepared")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(skipped.file, skipped.reason) for skipped in manifest.skipped] == [
        ("pear/bomb.png", "12000 x 12000 px are more than 89478485 pixels (max_pixels)")
    ]
    assert peak < 20e6


def test_strip_that_would_explode_when_resized_is_skipped(images: Path, tmp_path: Path) -> None:
    write_files(images, {"pear/strip.png": encoded(Image.new("L", (60_000, 2)))})
    manifest = prepare(folder_settings(images, image_size=224, max_skipped_fraction=0.1), tmp_path / "prepared")
    assert manifest.skipped[0].reason.startswith("60000 x 2 px are too elongated")


def test_too_small_classes_are_found_before_anything_is_decoded(tmp_path: Path) -> None:
    images = write_files(tmp_path / "images", {f"{name}/1.png": b"not even an image" for name in "xyz"})
    with pytest.raises(DataError, match="3 of 3 classes have too few different images"):
        prepare(folder_settings(images), tmp_path / "prepared")


def test_second_prepare_replaces_the_first(images: Path, tmp_path: Path) -> None:
    prepare(folder_settings(images, storage="encoded"), tmp_path / "prepared")
    prepare(folder_settings(images), tmp_path / "prepared")
    assert load_prepared(tmp_path / "prepared").manifest.storage == "arrays"
    assert not (tmp_path / "prepared" / "train.images.bin").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "prepared"]


def test_failed_prepare_leaves_the_old_data_set_alone(images: Path, tmp_path: Path) -> None:
    prepare(folder_settings(images), tmp_path / "prepared")
    before = contents(tmp_path / "prepared")
    damage(images)
    with pytest.raises(DataError):
        prepare(folder_settings(images), tmp_path / "prepared")
    assert contents(tmp_path / "prepared") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "prepared"]


@pytest.mark.parametrize("killed_at", [32, 96, 128])
def test_killed_prepare_leaves_nothing_and_the_next_one_succeeds(tmp_path: Path, killed_at: int) -> None:
    images = write_files(tmp_path / "images", class_files(num_images=40))
    code = f"""
import os, signal
from pathlib import Path
from compress.data import DataSettings, ImageFolder
from compress.data.prepare import prepare
def kill(done, total):
    if done >= {killed_at}:
        os.kill(os.getpid(), signal.SIGKILL)
prepare(DataSettings(source=ImageFolder(path=Path({str(images)!r}))), Path({str(tmp_path / "prepared")!r}), report=kill)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / "prepared").exists()
    prepare(folder_settings(images), tmp_path / "prepared")
    load_prepared(tmp_path / "prepared")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "prepared"]


def test_folder_of_something_else_is_not_replaced(images: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="home holds something else than a prepared data set"):
        prepare(folder_settings(images), tmp_path / "home")
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"


def test_empty_folder_is_taken(images: Path, tmp_path: Path) -> None:
    (tmp_path / "prepared").mkdir()
    prepare(folder_settings(images), tmp_path / "prepared")
    load_prepared(tmp_path / "prepared")


def test_output_that_can_not_be_written_is_one_line(images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"can not write .*file.*; choose a writable folder with enough space"):
        prepare(folder_settings(images), tmp_path / "file" / "prepared")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_one_line(images: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(DataError, match="Permission denied; choose a writable folder"):
        prepare(folder_settings(images), tmp_path / "locked" / "prepared")


class Generated(Source):
    """Pictures made when asked for: a source of any size without files."""

    num_images: int
    side: int
    changing: bool = False

    @contextmanager
    def open(self) -> Generator[ImageCollection]:
        num_reads = [0] * self.num_images

        def read(place: int) -> RawImage:
            num_reads[place] += 1
            seed = (place, num_reads[place] if self.changing else 0)
            return np.asarray(noise(seed, self.side, self.side))

        images = [SourceImage(f"{place:05d}", place % 2, None) for place in range(self.num_images)]
        yield ImageCollection(("even", "odd"), images, read)


class GeneratedSettings(DataSettings):
    source: Generated


@pytest.mark.parametrize("storage", ["arrays", "encoded"])
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, storage: Literal["arrays", "encoded"]) -> None:
    peaks: list[int] = []
    for num_images in (20, 100):  # of 77 kB each
        tracemalloc.start()
        source = Generated(num_images=num_images, side=160)
        prepare(GeneratedSettings(source=source, storage=storage), tmp_path / f"{num_images}")
        prepared = load_prepared(tmp_path / f"{num_images}")
        for split in prepared.manifest.splits:
            for _ in prepared.split(split).batches(4):
                pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 3_000_000  # 6 MB of images lie between the two; threads hold some


def test_source_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    source = Generated(num_images=20, side=8, changing=True)
    with pytest.raises(DataError, match=r"\d+ changed while it was being prepared; run again"):
        prepare(GeneratedSettings(source=source, storage="encoded"), tmp_path / "prepared")
