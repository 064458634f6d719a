"""CIFAR of a few images in its authors' own format; only sizes and hashes are ours."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.data import Cifar10, Cifar100, cifar

CLASSES = ["apple", "pear", "plum", "quince"]
NUM_IMAGES = {"train": 40, "test": 8}


def parts_of(publication: cifar.Publication) -> dict[str, dict[str, Any]]:
    """Content of each file."""
    random = np.random.default_rng(0)
    parts: dict[str, dict[str, Any]] = {publication.names_file: {publication.names_key: CLASSES}}
    for split, names in publication.files.items():
        for name in names:
            count = NUM_IMAGES[split] // len(names)
            labels = [place % len(CLASSES) for place in range(count)]
            pixels = random.integers(0, 256, (count, 3 * 32 * 32), dtype=np.uint8)
            parts[name] = {"data": pixels, publication.labels_key: labels}
    return parts


def packed(folder: str, files: Mapping[str, bytes]) -> bytes:
    """An archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def publish(
    monkeypatch: pytest.MonkeyPatch, kind: type[Cifar10] | type[Cifar100], files: Mapping[str, bytes]
) -> tuple[cifar.Publication, bytes]:
    """Make these files the published ones; their description and their archive."""
    name = kind.__name__.upper()
    publication: cifar.Publication = getattr(cifar, name)
    archive = packed(publication.folder, files)
    digest = hashlib.sha256(archive).hexdigest()
    small = publication._replace(
        archive=publication.archive._replace(sha256=digest, size_bytes=len(archive)),
        md5={file: hashlib.md5(content).hexdigest() for file, content in files.items()},
    )
    monkeypatch.setattr(cifar, name, small)
    return small, archive


def publish_small(
    monkeypatch: pytest.MonkeyPatch, kind: type[Cifar10] | type[Cifar100], folder: Path
) -> dict[str, dict[str, Any]]:
    """The same with an archive in `folder`; what is in its files."""
    parts = parts_of(getattr(cifar, kind.__name__.upper()))
    files = {name: pickle.dumps(part) for name, part in parts.items()}
    publication, archive = publish(monkeypatch, kind, files)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / publication.archive.name).write_bytes(archive)
    return parts
