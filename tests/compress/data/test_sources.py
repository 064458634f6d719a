"""What every source keeps to, and the sources that bring their own images."""

from __future__ import annotations

import functools
import hashlib
import pickle
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torchvision.datasets
from pydantic import TypeAdapter, ValidationError

from compress.data import Cifar10, Cifar100, DataSource, Digits, ImageFolder, Source
from compress.errors import DataError
from tests.compress.data.marks import needs_scikit_learn
from tests.compress.data.pictures import class_files, write_files


class FakeTorchvision:
    """torchvision's CIFAR objects hold data, targets and classes; this one needs no files."""

    def __init__(self, root: Path, train: bool, download: bool) -> None:
        random = np.random.default_rng(int(train))
        num_images = 40 if train else 8
        # torchvision's data is a transposed view, not contiguous
        self.data = random.integers(0, 256, (num_images, 3, 32, 32), dtype=np.uint8).transpose(0, 2, 3, 1)
        self.targets = [place % 4 for place in range(num_images)]
        self.classes = ["apple", "pear", "plum", "quince"]


@pytest.fixture(params=[pytest.param("digits", marks=needs_scikit_learn), "cifar10", "cifar100", "image_folder"])
def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeTorchvision)
    monkeypatch.setattr(torchvision.datasets, "CIFAR100", FakeTorchvision)
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


@pytest.mark.parametrize("kind", [Cifar10, Cifar100])
def test_cifar_keeps_the_official_split(
    kind: type[Cifar10] | type[Cifar100], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets, kind.__name__.upper(), FakeTorchvision)
    with kind(folder=tmp_path).open() as collection:
        splits = [image.split for image in collection.images]
        assert splits == ["train"] * 40 + ["test"] * 8
        assert np.array_equal(np.asarray(collection.read(3)), FakeTorchvision(tmp_path, True, False).data[3])
        assert np.array_equal(np.asarray(collection.read(41)), FakeTorchvision(tmp_path, False, False).data[1])


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray]:
    """CIFAR-100 of six images in torchvision's own format, and their pixels; only MD5 sums are replaced by ours."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3 * 32 * 32), dtype=np.uint8)
    parts = {
        "train": {"data": pixels[:4], "fine_labels": [1, 0, 2, 1]},
        "test": {"data": pixels[4:], "fine_labels": [0, 2]},
        "meta": {"fine_label_names": ["apple", "pear", "plum"]},
    }
    written = {name: pickle.dumps(part) for name, part in parts.items()}
    folder = tmp_path / "archive"
    write_files(folder / "cifar-100-python", written)
    with tarfile.open(folder / "cifar-100-python.tar.gz", "w:gz") as packed:
        packed.add(folder / "cifar-100-python", "cifar-100-python")
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in written.items()}
    kind = torchvision.datasets.CIFAR100
    monkeypatch.setattr(kind, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(kind, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5["meta"]})
    packed_md5 = hashlib.md5((folder / "cifar-100-python.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(kind, "tgz_md5", packed_md5)
    return folder, pixels


def check_six_images(source: Cifar100, pixels: np.ndarray) -> None:
    with source.open() as collection:
        assert collection.classes == ("apple", "pear", "plum")
        assert [image.label for image in collection.images] == [1, 0, 2, 1, 0, 2]
        expected = pixels[5].reshape(3, 32, 32).transpose(1, 2, 0)
        assert np.array_equal(np.asarray(collection.read(5)), expected)


def test_torchvision_reads_a_local_copy(archive: tuple[Path, np.ndarray]) -> None:
    folder, pixels = archive
    check_six_images(Cifar100(folder=folder, download=False), pixels)


def test_torchvision_downloads_from_a_server(
    archive: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, pixels = archive
    handler = functools.partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/cifar-100-python.tar.gz"
        monkeypatch.setattr(torchvision.datasets.CIFAR100, "url", address)
        check_six_images(Cifar100(folder=tmp_path / "fetched"), pixels)
        server.shutdown()


def test_a_download_that_is_not_the_expected_file_is_refused(
    archive: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = archive
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "tgz_md5", "0" * 32)
    handler = functools.partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/cifar-100-python.tar.gz"
        monkeypatch.setattr(torchvision.datasets.CIFAR100, "url", address)
        with pytest.raises(DataError, match="downloading it failed"):
            Cifar100(folder=tmp_path / "fetched").open().__enter__()
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files and says nothing about it."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("kind", [Cifar10, Cifar100])
def test_cifar_that_is_not_there_says_what_to_put_where(kind: type[Cifar10] | type[Cifar100], tmp_path: Path) -> None:
    archive = "cifar-10-python.tar.gz" if kind is Cifar10 else "cifar-100-python.tar.gz"
    with pytest.raises(DataError, match=rf"no cifar\d+ in {tmp_path} .*unpack {archive} there, or set download: true"):
        kind(folder=tmp_path, download=False).open().__enter__()


def test_cifar_that_can_not_be_downloaded_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The real torchvision, and an address at which nobody listens.
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(DataError, match=r"downloading it failed \(.*refused.*\): put cifar-10-python.tar.gz there"):
        Cifar10(folder=tmp_path).open().__enter__()
