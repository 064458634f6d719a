"""Class folders and archives of them: what is understood, what is ignored, and what is an error that names the cure."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from compress.data import ImageFolder, file_tree
from compress.data.decoding import UnreadableImageError
from compress.data.source import SourceImage
from compress.errors import DataError
from tests.compress.data.pictures import class_files, encoded, noise, write_archive, write_files

PNG = encoded(noise(0))


def listing(path: Path) -> tuple[tuple[str, ...], list[SourceImage], int]:
    with ImageFolder(path=path).open() as collection:
        return collection.classes, list(collection.images), collection.num_ignored_files


def files(*names: str) -> dict[str, bytes]:
    return {name: encoded(noise(place)) for place, name in enumerate(names)}


@pytest.fixture(params=["folder", "archive"])
def stored(request: pytest.FixtureRequest, tmp_path: Path):
    """Writes files as a folder or as an archive and gives its path."""

    def write(content: dict[str, bytes]) -> Path:
        if request.param == "folder":
            return write_files(tmp_path / "images", content)
        return write_archive(tmp_path / "images.zip", content)

    return write


def test_classes_are_the_folders_in_code_point_order(stored) -> None:
    classes, images, _ = listing(stored(files("b/2.png", "a/1.png", "B/3.png", "b/1.png", "10/x.png", "9/x.png")))
    assert classes == ("10", "9", "B", "a", "b")
    assert [image.file for image in images] == ["10/x.png", "9/x.png", "B/3.png", "a/1.png", "b/1.png", "b/2.png"]
    assert [image.label for image in images] == [0, 1, 2, 3, 4, 4]
    assert {image.split for image in images} == {None}


@pytest.mark.parametrize("wrapper", ["", "cifar100/", "a/b/"])
@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [("train", "val", "test"), ("Training", "valid", "TEST"), ("train", "validation", "testing")],
)
def test_split_folders_are_kept(stored, wrapper: str, train: str, validation: str, test: str) -> None:
    names = [f"{wrapper}{split}/{name}/1.png" for split in (train, validation, test) for name in ("x", "y")]
    classes, images, _ = listing(stored(files(*names)))
    assert classes == ("x", "y")
    assert Counter(image.split for image in images) == {"train": 2, "validation": 2, "test": 2}
    assert {image.file for image in images} == set(names)


def test_train_and_test_alone_are_understood(stored) -> None:
    _, images, _ = listing(stored(files("train/x/1.png", "train/y/1.png", "test/x/1.png", "test/y/1.png")))
    assert Counter(image.split for image in images) == {"train": 2, "test": 2}


def test_one_wrapping_folder_named_train_is_only_a_wrapper(stored) -> None:
    classes, images, _ = listing(stored(files("train/x/1.png", "train/y/1.png")))
    assert classes == ("x", "y")
    assert len(images) == 2


def test_vehicles_named_train_are_a_class(stored) -> None:
    classes, images, _ = listing(stored(files("train/1.png", "plane/1.png")))
    assert classes == ("plane", "train")
    assert {image.split for image in images} == {None}


def test_images_deeper_inside_a_class_folder_belong_to_it(stored) -> None:
    classes, images, _ = listing(stored(files("x/2019/may/1.png", "x/2.png", "y/1.png")))
    assert classes == ("x", "y")
    assert [image.label for image in images] == [0, 0, 1]


def test_other_endings_and_hidden_files_are_ignored_and_counted(stored) -> None:
    path = stored(
        files("x/1.png", "y/1.JPG")
        | {
            "x/notes.txt": b"no",
            "readme.md": b"no",
            "y/labels.csv": b"no",
            "x/.DS_Store": b"no",
            "x/._1.png": b"no",
            ".git/x/1.png": PNG,
            "__MACOSX/x/1.png": PNG,
        }
    )
    classes, images, num_ignored = listing(path)
    assert classes == ("x", "y")
    assert [image.file for image in images] == ["x/1.png", "y/1.JPG"]
    assert num_ignored == 7


def test_folder_and_archive_give_the_same_listing(tmp_path: Path) -> None:
    content = class_files(("b", "a", "ä"), num_images=3, prefix="top/train/")
    folder, archive = write_files(tmp_path / "f", content), write_archive(tmp_path / "a.zip", content)
    assert listing(folder) == listing(archive)
    with ImageFolder(path=folder).open() as one, ImageFolder(path=archive).open() as other:
        assert [one.read(place) for place in range(9)] == [other.read(place) for place in range(9)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["x/1.txt", "y/2.csv"], "no images: none of 2 files has an ending such as .png"),
        ([], "no images: none of 0 files"),
        (["x/1.png", "x/2.png"], "only one class: x; a classifier needs at least two"),
        (["top/x/1.png"], "only one class: x"),
        (["1.png", "2.png"], "2 images such as 1.png lie in no class folder"),
        (["x/1.png", "y/1.png", "z.png"], "1 images such as z.png lie in no class folder; put each image into"),
        (["x/1.png", "y/1.png", "z/readme.txt"], "the class folder z has no images; fill it or delete it"),
        (["x/1.png", "y/1.png", "z/n.txt", "w/n.txt"], r"the class folder w has no images \(and 1 others\)"),
        (
            ["train/x/1.png", "train/y/1.png", "train/z/n.txt", "test/x/1.png", "test/y/1.png"],
            "the class folder train/z has no images",
        ),
        (
            ["train/x/1.png", "train/y/1.png", "train/z/1.png", "test/x/1.png", "test/y/1.png", "test/w/1.png"],
            "the test split has other classes than train: it lacks z and has w in addition; give every split the same",
        ),
        (
            ["train/x/1.png", "train/y/1.png", "val/x/1.png"],
            "the validation split has other classes than train: it lacks y",
        ),
        (["val/x/1.png", "test/x/1.png"], "there is test, val but no train folder"),
        (["train/x/1.png", "val/x/1.png", "valid/x/1.png"], "two folders are the same split: train, val, valid"),
        (["train/x/1.png", "train/y/1.png", "test/1.png"], "1 images such as test/1.png lie directly in test"),
        (["train/1.png", "test/2.png"], "lie directly in (train|test), so they have no class: sort them into"),
        (["train/x/1.png", "test/x/1.png", "extra/x/1.png"], r"stand beside others with images \(extra\): move those"),
        (["train/x/1.png", "test/x/1.png", "loose.png"], r"stand beside others with images \(loose.png\)"),
        (["train/x/1.png", "train/y/1.png", "test/n.txt"], "the split folder test has no images; fill it or delete it"),
    ],
)
def test_layout_that_can_not_be_meant_is_an_error(stored, names: list[str], message: str) -> None:
    content = dict.fromkeys(names, PNG)
    path = stored(content)
    with pytest.raises(DataError, match=message) as caught:
        listing(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_class_folder_on_disk_is_an_error(tmp_path: Path) -> None:
    path = write_files(tmp_path / "images", files("x/1.png", "y/1.png") | {"z/": b""})
    with pytest.raises(DataError, match="the class folder z has no images"):
        listing(path)


def test_folder_without_images_beside_splits_is_no_class(stored) -> None:
    _, images, num_ignored = listing(
        stored(files("train/x/1.png", "train/y/1.png", "test/x/1.png", "test/y/1.png") | {"annotations/a.json": b"{}"})
    )
    assert len(images) == 4
    assert num_ignored == 1


def test_missing_path_is_named() -> None:
    with pytest.raises(DataError, match="no folder or zip archive at nowhere/to/be/found"):
        listing(Path("nowhere/to/be/found"))


def test_file_that_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(b"PK not really")
    with pytest.raises(DataError, match=r"images.zip is neither a folder nor a whole zip archive"):
        listing(tmp_path / "images.zip")


def test_cut_off_archive_is_named(tmp_path: Path) -> None:
    whole = write_archive(tmp_path / "images.zip", class_files()).read_bytes()
    (tmp_path / "images.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="neither a folder nor a whole zip archive"):
        listing(tmp_path / "images.zip")


def test_names_that_lead_out_of_an_archive_are_ignored_and_nothing_is_written(tmp_path: Path) -> None:
    outside = {"../../x/evil.png": PNG, "/y/evil.png": PNG, "x/../../evil.png": PNG, "..\\x\\evil.png": PNG}
    inside = tmp_path / "deep" / "er"
    inside.mkdir(parents=True)
    path = write_archive(inside / "images.zip", files("x/1.png", "y/1.png") | outside)
    before = sorted(tmp_path.rglob("*"))
    with ImageFolder(path=path).open() as collection:
        contents = [collection.read(place) for place in range(len(collection.images))]
        assert [image.file for image in collection.images] == ["x/1.png", "y/1.png"]
        assert collection.num_ignored_files == 4
    assert len(contents) == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_backslashes_of_windows_archives_separate_folders(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "images.zip", files("top\\x\\1.png", "top\\y\\1.png"))
    assert listing(path)[0] == ("x", "y")


def test_damaged_archive_member_is_one_unreadable_image(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "images.zip", files("x/1.png", "y/1.png"))
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 10] ^= 0xFF
    path.write_bytes(content)
    with ImageFolder(path=path).open() as collection:
        with pytest.raises(UnreadableImageError, match="can not be read from the archive: Bad CRC-32"):
            collection.read(0)
        collection.read(1)


def test_archive_member_that_claims_to_be_huge_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_tree, "MAX_FILE_BYTES", 1_000_000)
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/1.png", PNG)
        archive.writestr("y/bomb.png", bytes(1_000_001))
    with (
        ImageFolder(path=path).open() as collection,
        pytest.raises(UnreadableImageError, match="1000001 bytes are more than 1000000, the most that is read"),
    ):
        collection.read(1)


def test_linked_class_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write_files(tmp_path / "store", {f"{name}/1.png": encoded(noise(ord(name))) for name in "xy"})
    root = tmp_path / "images"
    root.mkdir()
    for name in "xy":
        (root / name).symlink_to(tmp_path / "store" / name, target_is_directory=True)
    (tmp_path / "store" / "x" / "again").symlink_to(tmp_path / "store" / "x", target_is_directory=True)
    classes, images, _ = listing(root)
    assert classes == ("x", "y")
    assert [image.file for image in images] == ["x/1.png", "y/1.png"]


def test_broken_link_is_one_unreadable_image(tmp_path: Path) -> None:
    root = write_files(tmp_path / "images", files("x/1.png", "y/1.png"))
    (root / "x" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with ImageFolder(path=root).open() as collection:
        place = [image.file for image in collection.images].index("x/gone.png")
        with pytest.raises(UnreadableImageError, match="can not be read: No such file"):
            collection.read(place)


def test_names_that_are_no_utf_8_are_read_and_shown_escaped(tmp_path: Path) -> None:
    root = write_files(tmp_path / "images", files("x/1.png", "y/1.png"))
    raw = os.fsencode(root / "x") + b"/\xff.png"
    try:
        with open(raw, "wb") as file:  # noqa: PTH123  pathlib has no byte paths
            file.write(PNG)
    except OSError:
        pytest.skip("this file system refuses names that are not UTF-8")
    with ImageFolder(path=root).open() as collection:
        place = [image.file for image in collection.images].index("x/\\udcff.png")
        assert collection.read(place) == PNG
