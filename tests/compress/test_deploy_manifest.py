"""A deploy folder that differs from its manifest in anything is refused by name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from compress.deploy_manifest import MANIFEST, read_verified, write_manifest
from compress.errors import ArtifactError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "deploy"
    (root / "golden").mkdir(parents=True)
    (root / "model.onnx").write_bytes(b"model" * 100)
    (root / "labels.json").write_text('["a"]')
    (root / "golden" / "logits.npy").write_bytes(b"")
    write_manifest(root)
    return root


def test_manifest_lists_every_file_with_size_and_hash(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["format_version"] == 1
    assert manifest["files"] == {
        name: {
            "size_bytes": (folder / name).stat().st_size,
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
        }
        for name in ("golden/logits.npy", "labels.json", "model.onnx")
    }


def test_writing_it_again_gives_the_same_bytes_and_returns_their_hash(folder: Path) -> None:
    before = (folder / MANIFEST).read_bytes()
    assert write_manifest(folder) == hashlib.sha256(before).hexdigest()
    assert (folder / MANIFEST).read_bytes() == before


def test_contents_asked_for_are_returned(folder: Path) -> None:
    kept = read_verified(folder, keep=("labels.json", "golden/logits.npy"))
    assert kept == {"labels.json": b'["a"]', "golden/logits.npy": b""}


def test_links_to_files_are_files(folder: Path, tmp_path: Path) -> None:
    (folder / "model.onnx").rename(tmp_path / "cached")
    (folder / "model.onnx").symlink_to(tmp_path / "cached")
    assert read_verified(folder, keep=("model.onnx",)) == {"model.onnx": b"model" * 100}
    (tmp_path / "cached").write_bytes(b"other" * 100)
    with pytest.raises(ArtifactError, match=r"model\.onnx was changed"):
        read_verified(folder, keep=())


def change_byte(folder: Path) -> None:
    content = bytearray((folder / "model.onnx").read_bytes())
    content[7] ^= 1
    (folder / "model.onnx").write_bytes(content)


def change_manifest(folder: Path, old: str, new: str) -> None:
    text = (folder / MANIFEST).read_text()
    assert old in text
    (folder / MANIFEST).write_text(text.replace(old, new, 1))


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "byte": (change_byte, r"model\.onnx was changed: its SHA-256 is not the one in the manifest; deploy"),
    "length": (lambda folder: os.truncate(folder / "model.onnx", 499), r"model\.onnx was changed: 499 bytes, .* 500;"),
    "missing": (lambda folder: (folder / "labels.json").unlink(), r"labels\.json is missing"),
    "added": (lambda folder: (folder / "run.sh").touch(), r"run\.sh is not in the manifest"),
    "hidden": (lambda folder: (folder / "golden" / ".x").touch(), r"golden/\.x is not in the manifest"),
    "moved": (lambda folder: (folder / "labels.json").rename(folder / "x"), r"labels\.json is missing"),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), r"manifest\.json is missing"),
    "no json": (lambda folder: (folder / MANIFEST).write_text("{"), r"manifest\.json is damaged: no JSON"),
    "deep json": (lambda folder: (folder / MANIFEST).write_text("[" * 100_000), "no JSON"),
    "other json": (lambda folder: (folder / MANIFEST).write_text("[]"), "damaged or of another version"),
    "other version": (lambda folder: change_manifest(folder, ": 1,", ": 2,"), "damaged or of another version"),
    "no hash": (lambda folder: change_manifest(folder, '"sha256": "', '"sha256": "x'), "damaged or of another version"),
    "other key": (lambda folder: change_manifest(folder, '"size_bytes"', '"size"'), "damaged or of another version"),
    "outside": (lambda folder: change_manifest(folder, '"labels.json"', '"../labels"'), r"\.\./labels is missing"),
    "pipe": (lambda folder: os.mkfifo(folder / "pipe"), "pipe is neither a file nor a folder; remove it"),
    "broken link": (lambda folder: (folder / "link").symlink_to("nowhere"), "link is neither a file nor a folder"),
    "linked folder": (lambda folder: (folder / "link").symlink_to(folder / "golden"), "link is neither a file nor"),
    "folder as file": (
        lambda folder: ((folder / "labels.json").unlink(), (folder / "labels.json").mkdir()),
        r"labels\.json is missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_is_refused_by_name(folder: Path, change: str) -> None:
    apply, told = CHANGES[change]
    apply(folder)
    with pytest.raises(ArtifactError, match=told) as caught:
        read_verified(folder, keep=("model.onnx",))
    assert "\n" not in str(caught.value)


def test_rewritten_folder_is_refused_by_the_hash_of_its_manifest(folder: Path) -> None:
    known = write_manifest(folder)
    assert read_verified(folder, keep=(), manifest_sha256=known.upper()) == {}
    change_byte(folder)
    write_manifest(folder)
    read_verified(folder, keep=())
    with pytest.raises(ArtifactError, match=rf"manifest\.json is not the one with SHA-256 {known}"):
        read_verified(folder, keep=(), manifest_sha256=known)


def test_file_that_must_be_there_must_be_in_the_manifest(folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"golden/images\.npy is missing, and so it is in the manifest"):
        read_verified(folder, keep=("golden/images.npy",))


def test_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"manifest\.json is missing"):
        read_verified(tmp_path / "nowhere", keep=())
    with pytest.raises(ArtifactError, match="nowhere is no folder"):
        write_manifest(tmp_path / "nowhere")
