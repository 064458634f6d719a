"""CIFAR comes from its published files, by hand or over TLS, and from nothing else."""

from __future__ import annotations

import functools
import os
import pickle
import tarfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPMessage
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from compress.data import Cifar10, Cifar100, cifar, download
from compress.errors import DataError
from tests.compress.data.small_cifar import CLASSES, publish, publish_small

Kind = type[Cifar10] | type[Cifar100]
both = pytest.mark.parametrize("kind", [Cifar10, Cifar100])


class Handler(SimpleHTTPRequestHandler):
    """Serves files, and redirects /to/ADDRESS to ADDRESS."""

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/").rpartition("/")[0])
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def found_at(monkeypatch: pytest.MonkeyPatch, kind: Kind, address: str) -> None:
    name = kind.__name__.upper()
    publication: cifar.Publication = getattr(cifar, name)
    file = f"{address}/{publication.archive.name}"
    monkeypatch.setattr(cifar, name, publication._replace(archive=publication.archive._replace(address=file)))


@pytest.fixture
def without_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers of these tests have no certificate."""
    monkeypatch.setattr(download, "SCHEMES", frozenset({"http"}))


@both
def test_archive_is_read_in_place(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = publish_small(monkeypatch, kind, tmp_path)
    publication = getattr(cifar, kind.__name__.upper())
    with kind(folder=tmp_path, download=False).open() as collection:
        assert collection.classes == tuple(CLASSES)
        assert [image.split for image in collection.images] == ["train"] * 40 + ["test"] * 8
        files = [parts[name] for names in publication.files.values() for name in names]
        rows = np.concatenate([file["data"] for file in files])
        labels = [label for file in files for label in file[publication.labels_key]]
        assert [image.label for image in collection.images] == labels
        for place in (0, 3, 39, 40, 47):
            expected = rows[place].reshape(3, 32, 32).transpose(1, 2, 0)
            assert np.array_equal(np.asarray(collection.read(place)), expected)
    assert [path.name for path in tmp_path.iterdir()] == [publication.archive.name], "nothing is unpacked"


@both
def test_unpacked_folder_is_read(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_small(monkeypatch, kind, tmp_path)
    archive = next(tmp_path.iterdir())
    with kind(folder=tmp_path, download=False).open() as collection:
        first = np.asarray(collection.read(0))
    with tarfile.open(archive) as packed:
        for member in packed:
            content = packed.extractfile(member)
            if content is not None:
                (tmp_path / member.name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / member.name).write_bytes(content.read())
    archive.unlink()
    with kind(folder=tmp_path, download=False).open() as collection:
        assert np.array_equal(np.asarray(collection.read(0)), first)
    file = next(path for path in tmp_path.rglob("*") if path.name in ("train", "data_batch_1"))
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(DataError, match=rf"{file.name} is not the published file: its MD5"):
        kind(folder=tmp_path, download=False).open().__enter__()


def test_changed_archive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_small(monkeypatch, Cifar100, tmp_path)
    archive = next(tmp_path.iterdir())
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    with pytest.raises(DataError, match="its SHA-256 is not"):
        Cifar100(folder=tmp_path).open().__enter__()
    archive.write_bytes(bytes(content[:-1]))
    with pytest.raises(DataError, match="does not have the"):
        Cifar100(folder=tmp_path).open().__enter__()


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.system, (f"touch {self.marker}",)


def test_pickle_that_asks_for_code_is_refused_even_with_the_right_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "ran"
    files = {name: pickle.dumps(Attack(marker)) for name in ("train", "test", "meta")}
    publication, archive = publish(monkeypatch, Cifar100, files)
    (tmp_path / publication.archive.name).write_bytes(archive)
    with pytest.raises(DataError, match=r"asks for posix\.system"):
        Cifar100(folder=tmp_path).open().__enter__()
    assert not marker.exists()


# Downloads.


@pytest.mark.usefixtures("without_tls")
def test_download_is_kept_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_small(monkeypatch, Cifar100, tmp_path / "published")
    with serving(tmp_path / "published") as address:
        found_at(monkeypatch, Cifar100, address)
        with Cifar100(folder=tmp_path / "fetched").open() as collection:
            assert len(collection.images) == 48
    assert [path.name for path in (tmp_path / "fetched").iterdir()] == ["cifar-100-python.tar.gz"]


def test_address_without_tls_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_small(monkeypatch, Cifar100, tmp_path / "published")
    with serving(tmp_path / "published") as address:
        found_at(monkeypatch, Cifar100, address)
        with pytest.raises(DataError, match=r"http://127\.0\.0\.1.* is not fetched: only https is"):
            Cifar100(folder=tmp_path / "fetched").open().__enter__()


@pytest.mark.usefixtures("without_tls")
@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x"])
def test_redirect_away_from_tls_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    publish_small(monkeypatch, Cifar100, tmp_path / "published")
    with serving(tmp_path / "published") as address:
        found_at(monkeypatch, Cifar100, f"{address}/to/{target}")
        with pytest.raises(DataError, match=r"is not fetched: only|is not allowed"):
            Cifar100(folder=tmp_path / "fetched").open().__enter__()
    assert not list((tmp_path / "fetched").iterdir())


def test_redirect_to_http_is_refused() -> None:
    request = urllib.request.Request("https://mirror/x")
    with pytest.raises(DataError, match=r"http://mirror/x is not fetched: only https is"):
        download._TlsRedirects().redirect_request(request, None, 302, "", HTTPMessage(), "http://mirror/x")


@pytest.mark.usefixtures("without_tls")
@pytest.mark.parametrize(
    ("changed", "refusal"), [(b"other", "sent another file"), (b"more" * 10_000, "sends more than")]
)
def test_download_of_another_file_is_refused_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: bytes, refusal: str
) -> None:
    publish_small(monkeypatch, Cifar100, tmp_path / "published")
    archive = next((tmp_path / "published").iterdir())
    archive.write_bytes(changed if len(changed) < 10 else archive.read_bytes() + changed)
    with serving(tmp_path / "published") as address:
        found_at(monkeypatch, Cifar100, address)
        with pytest.raises(DataError, match=rf"downloading it failed \(.*{refusal}"):
            Cifar100(folder=tmp_path / "fetched").open().__enter__()
    assert not list((tmp_path / "fetched").iterdir())


@both
def test_cifar_that_is_not_there_says_what_to_put_where(kind: Kind, tmp_path: Path) -> None:
    archive = getattr(cifar, kind.__name__.upper()).archive.name
    with pytest.raises(DataError, match=rf"no cifar\d+ in {tmp_path}: unpack {archive} there, or set download: true"):
        kind(folder=tmp_path, download=False).open().__enter__()


@pytest.mark.usefixtures("without_tls")
def test_server_that_is_away_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found_at(monkeypatch, Cifar10, "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"downloading it failed \(.*refused.*\): put cifar-10-python.tar.gz there"):
        Cifar10(folder=tmp_path).open().__enter__()


def test_published_addresses_are_over_tls() -> None:
    for publication in (cifar.CIFAR10, cifar.CIFAR100):
        assert publication.archive.address.startswith("https://")
        assert len(publication.archive.sha256) == 64
