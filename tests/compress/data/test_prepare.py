"""From a source to the prepared folder: what is written, what is skipped, and what leaves nothing behind."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from compress.data import DataSettings, Digits
from compress.data.manifest import Manifest
from compress.data.prepare import prepare
from compress.data.prepared import load_prepared
from compress.data.source import SPLIT_NAMES
from compress.errors import DataError
from tests.compress.data.marks import needs_scikit_learn
from tests.compress.data.pictures import class_files, encoded, noise, write_archive, write_files
from tests.compress.data.prepared_folders import contents, folder_settings, table

REPOSITORY = Path(__file__).parents[3]


@needs_scikit_learn
def test_digits_are_prepared_as_arrays_of_their_native_size(tmp_path: Path) -> None:
    manifest = prepare(DataSettings(source=Digits()), tmp_path / "prepared")
    assert (manifest.storage, manifest.height, manifest.width) == ("arrays", 8, 8)
    assert {split: info.num_images for split, info in manifest.splits.items()} == {
        "train": 1259,
        "validation": 179,
        "test": 359,
    }
    assert manifest.skipped == ()
    assert manifest.source == {"name": "digits"}
    assert manifest.seed == 0


def test_array_files_hold_the_pixels_of_the_named_files(images: Path, tmp_path: Path) -> None:
    manifest = prepare(folder_settings(images), tmp_path / "prepared")
    for split, info in manifest.splits.items():
        pixels = np.load(tmp_path / "prepared" / f"{split}.images.npy")
        labels = np.load(tmp_path / "prepared" / f"{split}.labels.npy")
        rows = table(tmp_path / "prepared", split)
        assert (pixels.dtype, labels.dtype) == (np.uint8, np.int64)
        assert len(pixels) == len(labels) == len(rows) == info.num_images
        for place, row in enumerate(rows):
            assert int(row["index"]) == place
            assert np.array_equal(pixels[place], np.asarray(Image.open(images / row["file"])))
            assert row["class"] == manifest.classes[labels[place]] == row["file"].split("/")[0]
            assert row["sha256"] == hashlib.sha256(pixels[place].tobytes()).hexdigest()


def test_encoded_files_hold_the_bytes_of_the_named_files(images: Path, tmp_path: Path) -> None:
    manifest = prepare(folder_settings(images, storage="encoded"), tmp_path / "prepared")
    assert manifest.storage == "encoded"
    for split in manifest.splits:
        together = (tmp_path / "prepared" / f"{split}.images.bin").read_bytes()
        offsets = np.load(tmp_path / "prepared" / f"{split}.offsets.npy")
        assert offsets[-1] == len(together)
        for place, row in enumerate(table(tmp_path / "prepared", split)):
            content = together[offsets[place] : offsets[place + 1]]
            assert content == (images / row["file"]).read_bytes()
            assert row["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("storage", ["arrays", "encoded"])
def test_same_input_gives_the_same_files_byte_for_byte(
    images: Path, tmp_path: Path, storage: Literal["arrays", "encoded"]
) -> None:
    settings = folder_settings(images, storage=storage)
    prepare(settings, tmp_path / "one")
    prepare(settings, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_folder_archive_and_another_place_have_one_fingerprint(tmp_path: Path) -> None:
    files = class_files()
    paths = [
        write_files(tmp_path / "here", files),
        write_archive(tmp_path / "there.zip", {f"wrapped/{name}": content for name, content in files.items()}),
    ]
    one, other = (prepare(folder_settings(path), tmp_path / f"prepared{place}") for place, path in enumerate(paths))
    assert one.fingerprint == other.fingerprint
    assert one.settings != other.settings


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"image_size": 12}, {"storage": "encoded"}, {"test_fraction": 0.3}], ids=str
)
def test_fingerprint_changes_with_what_changes_a_result(images: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    before = prepare(folder_settings(images), tmp_path / "before")
    assert prepare(folder_settings(images, **change), tmp_path / "after").fingerprint != before.fingerprint


@pytest.mark.parametrize("change", [{"image_size": 8}, {"storage": "encoded"}, {"image_size": 70}], ids=str)
def test_splits_do_not_depend_on_size_or_storage(images: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    prepare(folder_settings(images), tmp_path / "before")
    prepare(folder_settings(images, **change), tmp_path / "after")
    for split in SPLIT_NAMES:
        before, after = ([row["file"] for row in table(tmp_path / name, split)] for name in ("before", "after"))
        assert before == after


def test_fingerprint_changes_with_one_pixel(images: Path, tmp_path: Path) -> None:
    before = prepare(folder_settings(images), tmp_path / "before")
    path = images / "apple" / "003.png"
    picture = Image.open(path)
    picture.load()
    picture.putpixel((0, 0), (1, 2, 3))
    picture.save(path)
    assert prepare(folder_settings(images), tmp_path / "after").fingerprint != before.fingerprint


@pytest.mark.parametrize("storage", ["arrays", "encoded"])
def test_statistics_are_of_the_train_split_alone(
    images: Path, tmp_path: Path, storage: Literal["arrays", "encoded"]
) -> None:
    manifest = prepare(folder_settings(images, storage=storage, image_size=8), tmp_path / "prepared")
    train = load_prepared(tmp_path / "prepared").split("train")
    values = train.images(np.arange(len(train))).numpy().reshape(-1, 3) / 255
    assert manifest.mean == pytest.approx(values.mean(axis=0), abs=1e-14)
    assert manifest.std == pytest.approx(values.std(axis=0), abs=1e-14)


@pytest.mark.parametrize(("side", "storage"), [(64, "arrays"), (65, "encoded")])
def test_storage_is_chosen_by_size(tmp_path: Path, side: int, storage: str) -> None:
    images = write_files(tmp_path / "images", class_files(num_images=3, size=20))
    assert prepare(folder_settings(images, image_size=side), tmp_path / "prepared").storage == storage
    native = write_files(tmp_path / "native", class_files(num_images=3, size=side))
    assert prepare(folder_settings(native), tmp_path / "prepared_native").storage == storage


@pytest.mark.parametrize(("size", "crop_fraction"), [(64, 1.0), (65, 0.875)])
def test_photos_are_cropped_and_tiny_images_are_not(tmp_path: Path, size: int, crop_fraction: float) -> None:
    images = write_files(tmp_path / "images", class_files(num_images=3, size=20))
    resize = prepare(folder_settings(images, image_size=size), tmp_path / "prepared").preprocessing.resize
    assert resize is not None
    assert resize.crop_fraction == crop_fraction


def test_native_sizes_that_differ_are_an_error_that_names_two_files(images: Path, tmp_path: Path) -> None:
    (images / "pear" / "004.png").write_bytes(encoded(noise(1, 13, 12)))
    expected = (
        "images differ in size: pear/004.png has 13 x 12 px, apple/000.png has 12 x 12; "
        "set image_size to bring all to one size"
    )
    with pytest.raises(DataError, match=expected):
        prepare(folder_settings(images), tmp_path / "prepared")
    manifest = prepare(folder_settings(images, image_size=10), tmp_path / "prepared")
    assert (manifest.height, manifest.width) == (10, 10)


def test_copies_across_given_splits_are_reported(tmp_path: Path) -> None:
    files = class_files(prefix="train/") | class_files(prefix="test/", num_images=2, seed=1)
    files["test/apple/copy.png"] = files["train/apple/004.png"]
    images = write_files(tmp_path / "images", files)
    report = prepare(folder_settings(images), tmp_path / "report").duplicates
    assert (report.num_groups, report.num_groups_across_splits, report.num_groups_across_classes) == (1, 1, 0)
    assert [(copy.file, copy.class_name) for copy in report.examples[0].copies][-1] == ("test/apple/copy.png", "apple")
    dropped = prepare(folder_settings(images, duplicates="drop_from_train"), tmp_path / "dropped")
    assert dropped.duplicates.num_dropped_from_train == 1
    assert dropped.duplicates.num_groups_across_splits == 0
    assert sum(info.num_images for info in dropped.splits.values()) == len(files) - 1
    assert "train/apple/004.png" not in [row["file"] for row in table(tmp_path / "dropped", "train")]


def test_copies_under_two_classes_are_reported(images: Path, tmp_path: Path) -> None:
    (images / "pear" / "copy.png").write_bytes((images / "apple" / "000.png").read_bytes())
    report = prepare(folder_settings(images), tmp_path / "prepared").duplicates
    assert (report.num_groups, report.num_groups_across_splits, report.num_groups_across_classes) == (1, 0, 1)
    assert {copy.class_name for copy in report.examples[0].copies} == {"apple", "pear"}


def test_arrays_find_copies_that_were_encoded_differently(images: Path, tmp_path: Path) -> None:
    picture = Image.open(images / "apple" / "000.png")
    picture.save(images / "apple" / "copy.bmp")
    assert prepare(folder_settings(images), tmp_path / "arrays").duplicates.num_groups == 1
    assert prepare(folder_settings(images, storage="encoded"), tmp_path / "encoded").duplicates.num_groups == 0


def test_progress_is_reported_up_to_the_end(tmp_path: Path) -> None:
    images = write_files(tmp_path / "images", class_files(num_images=40))
    steps: list[tuple[int, int]] = []
    prepare(folder_settings(images), tmp_path / "prepared", report=lambda done, total: steps.append((done, total)))
    assert steps == sorted(steps)
    assert steps[-1] == (160, 160)
    assert len(steps) >= 4


def test_manifest_file_is_the_manifest(images: Path, tmp_path: Path) -> None:
    manifest = prepare(folder_settings(images), tmp_path / "prepared")
    text = (tmp_path / "prepared" / "manifest.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert Manifest.model_validate_json(text) == manifest
    assert manifest.splits["test"].images_per_class == {"apple": 2, "pear": 2}
    for info in manifest.splits.values():
        for name, stored in info.files.items():
            content = (tmp_path / "prepared" / name).read_bytes()
            assert stored.size_bytes == len(content)
            assert stored.sha256 == hashlib.sha256(content).hexdigest()
    listed = {name for info in manifest.splits.values() for name in info.files} | {"manifest.json"}
    assert listed == {path.name for path in (tmp_path / "prepared").iterdir()}
