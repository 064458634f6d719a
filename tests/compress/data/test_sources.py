"""What every source keeps to, and the sources that bring their own images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from compress.data import Cifar10, Cifar100, DataSource, Digits, ImageFolder, Source
from compress.errors import DataError
from tests.compress.data.marks import needs_scikit_learn
from tests.compress.data.pictures import class_files, write_files
from tests.compress.data.small_cifar import publish_small


@pytest.fixture(params=[pytest.param("digits", marks=needs_scikit_learn), "cifar10", "cifar100", "image_folder"])
def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    for kind in (Cifar10, Cifar100):
        publish_small(monkeypatch, kind, tmp_path)
    folder = write_files(tmp_path / "images", class_files())
    return {
        "digits": Digits(),
        "cifar10": Cifar10(folder=tmp_path),
        "cifar100": Cifar100(folder=tmp_path),
        "image_folder": ImageFolder(path=folder),
    }[request.param]


def test_the_fixture_knows_every_source(source: Source) -> None:
    members = get_args(get_args(DataSource)[0])
    assert {member.model_fields["name"].default for member in members} == {
        "digits",
        "cifar10",
        "cifar100",
        "image_folder",
    }


def test_opening_twice_gives_the_same_images(source: Source) -> None:
    with source.open() as one, source.open() as other:
        assert (one.classes, list(one.images)) == (other.classes, list(other.images))
        for place in (0, len(one.images) - 1):
            assert np.array_equal(np.asarray(one.read(place)), np.asarray(other.read(place)))


def test_files_have_different_names_and_labels_point_at_classes(source: Source) -> None:
    with source.open() as collection:
        assert len({image.file for image in collection.images}) == len(collection.images)
        assert {image.label for image in collection.images} == set(range(len(collection.classes)))
        assert len(set(collection.classes)) == len(collection.classes) >= 2


def test_every_image_is_file_content_or_rgb_bytes(source: Source) -> None:
    with source.open() as collection:
        raw = collection.read(len(collection.images) // 2)
        assert isinstance(raw, bytes) or (raw.dtype == np.uint8 and raw.shape[2] == 3)


def test_source_survives_json(source: Source) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(DataSource)
    assert adapter.validate_json(source.model_dump_json()) == source


def test_unknown_source_is_an_error_that_lists_the_right_ones() -> None:
    with pytest.raises(ValidationError, match="'digits', 'cifar10', 'cifar100', 'image_folder'"):
        TypeAdapter(DataSource).validate_python({"name": "mnist"})


@needs_scikit_learn
def test_digits_are_the_1797_of_scikit_learn_over_the_whole_byte_range() -> None:
    with Digits().open() as collection:
        assert collection.classes == tuple("0123456789")
        assert len(collection.images) == 1797
        assert {image.split for image in collection.images} == {None}
        first = collection.read(0)
        assert isinstance(first, np.ndarray)
        assert first.shape == (8, 8, 3)
        # The first row of the first digit in scikit-learn is 0 0 5 13 9 1 0 0, of 16.
        assert first[0, :, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
        assert (first == first[..., :1]).all()


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match="pip install scikit-learn"), Digits().open():
        pass
