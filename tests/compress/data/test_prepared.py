"""Reading a prepared data set: the same contract for both storage forms, and no damaged file is ever used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from compress.data import DataSettings, Digits, ImageFolder
from compress.data import prepared as module
from compress.data.prepare import prepare
from compress.data.prepared import ArraySplit, EncodedSplit, PreparedData, load_prepared
from compress.data.source import SPLIT_NAMES
from compress.errors import ArtifactError
from tests.compress.data.marks import needs_scikit_learn
from tests.compress.data.pictures import encoded, smooth, write_files

NUM_IMAGES = 40
Storage = Literal["arrays", "encoded"]


def photos() -> dict[str, bytes]:
    """JPEG files of different sizes in two classes."""
    return {
        f"{name}/{place:02d}.jpg": encoded(smooth(100 * number + place, 40 + place, 30), "JPEG")
        for number, name in enumerate(("cat", "dog"))
        for place in range(NUM_IMAGES // 2)
    }


def prepare_photos(folder: Path, storage: Storage) -> PreparedData:
    images = write_files(folder / "images", photos())
    prepare(DataSettings(source=ImageFolder(path=images), image_size=16, storage=storage), folder / "prepared")
    return load_prepared(folder / "prepared")


@pytest.fixture(scope="module", params=["arrays", "encoded"])
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepare_photos(tmp_path_factory.mktemp("photos"), request.param)


@pytest.fixture
def fresh(data: PreparedData, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    copy = tmp_path / "prepared"
    copy.mkdir()
    for path in data.folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def test_the_form_on_disk_decides_the_class(data: PreparedData) -> None:
    expected = ArraySplit if data.manifest.storage == "arrays" else EncodedSplit
    assert type(data.split("train")) is expected


def test_splits_have_the_sizes_and_labels_of_the_manifest(data: PreparedData) -> None:
    for name in SPLIT_NAMES:
        split, info = data.split(name), data.manifest.splits[name]
        assert len(split) == info.num_images == len(split.labels)
        assert split.labels.dtype == np.int64
        counts = np.bincount(split.labels, minlength=2).tolist()
        assert dict(zip(data.manifest.classes, counts, strict=True)) == info.images_per_class
        assert (split.height, split.width) == (data.manifest.height, data.manifest.width) == (16, 16)


def test_images_come_in_the_order_of_the_indices(data: PreparedData) -> None:
    split = data.split("train")
    together = split.images(np.arange(len(split)))
    assert together.dtype == torch.uint8
    assert together.shape == (len(split), 16, 16, 3)
    indices = np.array([5, 0, 5, len(split) - 1])
    assert torch.equal(split.images(indices), together[torch.from_numpy(indices)])


def test_no_index_gives_no_image(data: PreparedData) -> None:
    assert data.split("test").images(np.array([], dtype=np.int64)).shape == (0, 16, 16, 3)


@pytest.mark.parametrize("indices", [[-1], [0, 1000], [28]])
def test_index_outside_is_an_error(data: PreparedData, indices: list[int]) -> None:
    assert len(data.split("train")) == 28
    with pytest.raises(IndexError, match=r"are not all in 0\.\.27"):
        data.split("train").images(np.array(indices))
    with pytest.raises(IndexError):
        data.split("train").picture(indices[-1])


def test_batches_are_the_whole_split_in_order(data: PreparedData) -> None:
    split = data.split("train")
    batches = list(split.batches(10))
    assert [len(images) for images, _ in batches] == [10, 10, 8]
    assert torch.equal(torch.cat([images for images, _ in batches]), split.images(np.arange(28)))
    assert torch.cat([labels for _, labels in batches]).tolist() == split.labels.tolist()


def test_returned_images_may_be_changed_without_harm(data: PreparedData) -> None:
    split = data.split("test")
    images = split.images(np.array([0]))
    before = images.clone()
    images.zero_()
    assert torch.equal(split.images(np.array([0])), before)


def test_both_forms_give_the_same_images(tmp_path: Path) -> None:
    forms: list[Storage] = ["arrays", "encoded"]
    one, other = (prepare_photos(tmp_path / form, form) for form in forms)
    for name in SPLIT_NAMES:
        left, right = one.split(name), other.split(name)
        indices = np.arange(len(left))
        assert torch.equal(left.images(indices), right.images(indices))
        assert left.labels.tolist() == right.labels.tolist()


def pixels_by_file(data: PreparedData) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name in SPLIT_NAMES:
        rows = (data.folder / f"{name}.files.csv").read_text().splitlines()[1:]
        images = data.split(name).images(np.arange(len(rows))).numpy()
        found |= {row.split(",")[1]: pixels for row, pixels in zip(rows, images, strict=True)}
    return found


def test_picture_of_encoded_storage_has_its_full_size(tmp_path: Path) -> None:
    split = prepare_photos(tmp_path, "encoded").split("train")
    sizes = {split.picture(index).size for index in range(len(split))}
    assert len(sizes) > 5
    assert {height for _, height in sizes} == {30}


@needs_scikit_learn
def test_digits_encoded_equal_digits_as_arrays(tmp_path: Path) -> None:
    prepare(DataSettings(source=Digits(), storage="encoded"), tmp_path / "prepared")
    data = load_prepared(tmp_path / "prepared")
    with Digits().open() as collection:
        stored = pixels_by_file(data)
        for place, image in enumerate(collection.images[:200]):
            assert np.array_equal(stored[image.file], np.asarray(collection.read(place)))


@pytest.mark.parametrize("split", SPLIT_NAMES)
@pytest.mark.parametrize("part", ["images", "labels", "files"])
@pytest.mark.parametrize("damage", ["deleted", "cut", "changed"])
def test_damaged_file_is_named_with_the_cure(fresh: Path, split: str, part: str, damage: str) -> None:
    path = next(fresh.glob(f"{split}.{part}.*"))
    content = bytearray(path.read_bytes())
    if damage == "deleted":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-1])
    else:
        content[-1] ^= 1
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{path.name}.*run the prepare stage again"):
        load_prepared(fresh)


def test_missing_folder_says_which_stage_to_run(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no prepared data in .*: manifest.json .*; run the prepare stage"):
        load_prepared(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format_version": 2}'])
def test_damaged_manifest_is_named(fresh: Path, text: str) -> None:
    (fresh / "manifest.json").write_text(text)
    with pytest.raises(
        ArtifactError, match=r"manifest\.json is damaged or of another version \(.*run the prepare stage"
    ):
        load_prepared(fresh)


@pytest.mark.parametrize(
    ("field", "value"), [("mean", [0.5, 0.5, 0.5]), ("classes", ["dog", "cat"]), ("height", 17), ("storage", "arrays")]
)
def test_edited_manifest_is_refused(tmp_path: Path, field: str, value: object) -> None:
    folder = prepare_photos(tmp_path, "encoded").folder
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[field] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="was changed after it was written: its fingerprint does not fit"):
        load_prepared(folder)


def test_large_files_are_checked_by_size_alone(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_HASHED_FILE", 0)
    hashed: list[Path] = []
    monkeypatch.setattr(module, "file_sha256", hashed.append)
    load_prepared(fresh)
    assert hashed == []
    path = next(fresh.glob("train.images.*"))
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ArtifactError, match="bytes"):
        load_prepared(fresh)


def test_image_that_no_longer_decodes_is_named(tmp_path: Path) -> None:
    data = prepare_photos(tmp_path, "encoded")
    offsets = np.load(data.folder / "train.offsets.npy")
    content = bytearray((data.folder / "train.images.bin").read_bytes())
    content[offsets[3] : offsets[4]] = bytes(offsets[4] - offsets[3])
    (data.folder / "train.images.bin").write_bytes(content)
    split = data.split("train")
    assert split.images(np.array([2, 4])).shape == (2, 16, 16, 3)
    expected = r"image 3 of .*train\.images\.bin not an image.*: the file is damaged; run the prepare stage again"
    with pytest.raises(ArtifactError, match=expected):
        split.images(np.array([2, 3, 4]))


def test_pixels_are_mapped_not_loaded(data: PreparedData) -> None:
    split = data.split("train")
    stored = split._pixels if isinstance(split, ArraySplit) else split._content
    assert isinstance(stored.base, np.memmap)
