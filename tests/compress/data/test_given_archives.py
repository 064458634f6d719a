"""Real archives, where they are at hand: CIFAR-100 as class folders, and one photo of each ImageNet class."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from compress.data import DataSettings, ImageFolder
from compress.data.decoding import decode
from compress.data.prepare import prepare
from compress.data.prepared import load_prepared
from compress.errors import DataError

DATA = Path(__file__).parents[4] / "shared" / "data"
CIFAR100, PHOTOS = DATA / "cifar100.zip", DATA / "imagenet-samples.zip"


@pytest.mark.skipif(not CIFAR100.exists(), reason=f"no {CIFAR100.name} in ../shared/data")
def test_cifar100_archive_has_its_classes_and_official_splits() -> None:
    with ImageFolder(path=CIFAR100).open() as collection:
        assert len(collection.classes) == 100
        assert collection.classes[:2] == ("apple", "aquarium_fish")
        assert Counter(image.split for image in collection.images) == {"train": 50_000, "test": 10_000}
        content = collection.read(12_345)
    assert isinstance(content, bytes)
    assert decode(content, max_pixels=1024, alpha_background="white").size == (32, 32)


@pytest.mark.skipif(not PHOTOS.exists(), reason=f"no {PHOTOS.name} in ../shared/data")
def test_one_photo_a_class_can_not_be_stratified(tmp_path: Path) -> None:
    settings = DataSettings(source=ImageFolder(path=PHOTOS), image_size=224)
    with pytest.raises(DataError, match=r"1000 of 1000 classes have too few .* or set stratify: false"):
        prepare(settings, tmp_path / "prepared")


@pytest.mark.skipif(not PHOTOS.exists(), reason=f"no {PHOTOS.name} in ../shared/data")
def test_photos_are_kept_encoded_and_read_at_224_px(tmp_path: Path) -> None:
    settings = DataSettings(source=ImageFolder(path=PHOTOS), image_size=224, stratify=False)
    manifest = prepare(settings, tmp_path / "prepared")
    assert manifest.storage == "encoded"
    assert {split: info.num_images for split, info in manifest.splits.items()} == {
        "train": 700,
        "validation": 100,
        "test": 200,
    }
    test = load_prepared(tmp_path / "prepared").split("test")
    assert test.images(np.array([0, 199])).shape == (2, 224, 224, 3)
