"""No damaged store is read: wherever a bit flips, however rows are cut or moved, whoever's rows they are."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.errors import ArtifactError
from compress.logit_store import LOGITS, MANIFEST, read_manifest
from compress.teacher_logits import verify_against_teacher
from tests.compress import toy, toy_store

FORMS: list[dict[str, Any]] = [
    {"dtype": "float32"},
    {"dtype": "float16"},
    {"dtype": "uint8"},
    {"dtype": "float16", "top_k": 2},
]


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: "top_k" if "top_k" in form else form["dtype"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "store"
    toy_store.write(folder, **request.param)
    return folder


@pytest.fixture
def store(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "store")


def flipped(content: bytes, *, num: int, seed: int) -> Iterator[bytes]:
    """Copies with one bit changed, at random places and at both ends."""
    places = np.random.default_rng(seed).integers(0, 8 * len(content), num)
    for place in [0, 8 * len(content) - 1, *places.tolist()]:
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        yield bytes(changed)


def test_a_flipped_bit_is_noticed_wherever_it_is(store: Path) -> None:
    path = store / LOGITS
    for content in flipped(path.read_bytes(), num=60, seed=0):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match="run the teacher_logits stage again"):
            toy_store.opened(store)


def test_a_flipped_bit_of_the_manifest_is_noticed_wherever_it_is(store: Path) -> None:
    path = store / MANIFEST
    for content in flipped(path.read_bytes(), num=200, seed=1):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match="run the teacher_logits stage again"):
            read_manifest(store)


def test_a_cut_file_is_noticed_wherever_it_is_cut(store: Path) -> None:
    path = store / LOGITS
    content = path.read_bytes()
    for size in [0, 1, len(content) - 1, *np.random.default_rng(2).integers(2, len(content) - 1, 20).tolist()]:
        path.write_bytes(content[:size])
        with pytest.raises(ArtifactError, match=rf"has {size} bytes, {len(content)} were written"):
            toy_store.opened(store)


def test_exchanged_rows_are_noticed_whichever_they_are(store: Path) -> None:
    manifest = read_manifest(store)
    path, size = store / LOGITS, manifest.row_format.row_bytes
    content = path.read_bytes()
    head, rows = content[: len(manifest.header)], np.frombuffer(content[len(manifest.header) :], np.uint8)
    rows = rows.reshape(manifest.num_rows, size)
    random = np.random.default_rng(3)
    for first, second in random.integers(0, manifest.num_rows, (30, 2)):
        if rows[first].tobytes() == rows[second].tobytes():
            continue
        exchanged = rows.copy()
        exchanged[[first, second]] = rows[[second, first]]
        path.write_bytes(head + exchanged.tobytes())
        with pytest.raises(ArtifactError, match="is not the file that was written: chunk"):
            toy_store.opened(store)


def test_the_rows_of_another_teacher_do_not_fit_the_manifest(store: Path, tmp_path: Path) -> None:
    manifest = read_manifest(store)
    toy_store.write(tmp_path / "other", scale=5.0, dtype=manifest.dtype, top_k=manifest.top_k)
    shutil.copy(tmp_path / "other" / LOGITS, store / LOGITS)
    with pytest.raises(ArtifactError, match="is not the file that was written: chunk 0"):
        toy_store.opened(store)


def test_answers_that_are_a_view_late_are_noticed_behind_fitting_hashes(store: Path) -> None:
    """Each image's answers are there, and each is to the view of the epoch before."""
    manifest = read_manifest(store)
    rows = (store / LOGITS).read_bytes()[len(manifest.header) :]
    one_view = 26 * manifest.row_format.row_bytes
    toy_store.forge(store, rows[one_view:] + rows[:one_view])
    with pytest.raises(ArtifactError, match="not this teacher's answers to these views"):
        verify_against_teacher(toy_store.opened(store), toy.data().train, toy_store.network())
