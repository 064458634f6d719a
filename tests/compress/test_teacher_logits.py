"""Stored answers equal the live teacher's, and a store that is not exactly the expected one is refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.errors import ArtifactError, ModelError
from compress.methods import KD
from compress.teacher_logits import (
    OnlineTeacher,
    TeacherLogitsManifest,
    open_teacher_logits,
    read_manifest,
    write_switched_off,
    write_teacher_logits,
)
from compress.tensors import as_float_images
from compress.train import EpochReport, epoch_batches, new_training_state, train_epochs
from tests.compress import toy

CPU = torch.device("cpu")


def manifest(**changes: Any) -> TeacherLogitsManifest:
    facts: dict[str, Any] = {
        "enabled": True,
        "teacher_sha256": "t" * 64,
        "data_fingerprint": "d" * 64,
        "views": toy.VIEWS,
        "dtype": "float32",
        "shape": (4, 26, toy.NUM_CLASSES),
        "max_abs_error": 0.0,
        "sha256": "",
    }
    return TeacherLogitsManifest(**facts | changes)


def write(folder: Path, expected: TeacherLogitsManifest, *, scale: float = 1.0) -> TeacherLogitsManifest:
    network = toy.network(seed=7)
    with torch.no_grad():
        network[-1].weight.mul_(scale)  # type: ignore[index]
    counts = list(write_teacher_logits(folder, toy.data().train, network, manifest=expected, batch_size=10))
    assert counts[-1] == 4 * 26
    return read_manifest(folder)


def test_stored_answers_equal_the_live_teachers(tmp_path: Path) -> None:
    write(tmp_path / "store", manifest())
    stored, online = open_teacher_logits(tmp_path / "store", manifest()), OnlineTeacher(toy.network(seed=7))
    for epoch in range(5):
        for batch in epoch_batches(toy.data(), 8, epoch=epoch, seed=epoch):
            images = as_float_images(batch.images, CPU)
            torch.testing.assert_close(
                stored.logits(images, batch.indices, batch.slots),
                online.logits(images, batch.indices, batch.slots),
                rtol=0, atol=1e-6,  # another batch composition sums in another order
            )  # fmt: skip


def test_training_with_stored_answers_follows_training_with_the_live_teacher(tmp_path: Path) -> None:
    write(tmp_path / "store", manifest())
    losses = []
    for teacher in (open_teacher_logits(tmp_path / "store", manifest()), OnlineTeacher(toy.network(seed=7))):
        state = new_training_state(toy.network(), toy.SETTINGS)
        reports = train_epochs(state, KD(), toy.data(), settings=toy.SETTINGS, seed=0, teacher=teacher)
        losses.append([report.train_loss for report in reports if isinstance(report, EpochReport)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_the_stated_float16_error_is_the_largest_there_is(tmp_path: Path) -> None:
    exact, half = tmp_path / "exact", tmp_path / "half"
    write(exact, manifest())
    stated = write(half, manifest(dtype="float16")).max_abs_error
    difference = np.load(exact / "logits.npy") - np.load(half / "logits.npy").astype(np.float32)
    assert 0 < stated == np.abs(difference).max()


def test_logits_too_large_for_float16_are_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="dtype: float32"):
        write(tmp_path / "store", manifest(dtype="float16"), scale=1e7)
    assert not (tmp_path / "store").exists()


def test_logits_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not finite"):
        write(tmp_path / "store", manifest(), scale=float("nan"))


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher_sha256": "x" * 64},
        {"data_fingerprint": "x" * 64},
        {"views": toy.VIEWS.model_copy(update={"seed": 6})},
        {"shape": (4, 27, toy.NUM_CLASSES)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_answers_to_other_questions_are_refused_by_name(tmp_path: Path, changes: dict[str, Any]) -> None:
    write(tmp_path / "store", manifest())
    with pytest.raises(ArtifactError, match=rf"another {next(iter(changes))}.*run the teacher_logits stage again"):
        open_teacher_logits(tmp_path / "store", manifest(**changes))


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "reordered", "missing"])
def test_a_damaged_store_is_refused(tmp_path: Path, damage: str) -> None:
    write(tmp_path / "store", manifest())
    path = tmp_path / "store" / "logits.npy"
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[:-4])
    elif damage == "bit flipped":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "reordered":
        np.save(path, np.load(path)[:, ::-1])
    else:
        path.unlink()
    with pytest.raises(ArtifactError, match="not the file that was written"):
        open_teacher_logits(tmp_path / "store", manifest())


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "store", manifest())
    path = tmp_path / "store" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "float64"}))
    with pytest.raises(ArtifactError, match="missing or damaged"):
        read_manifest(tmp_path / "store")


def test_an_interrupted_writer_leaves_no_store(tmp_path: Path) -> None:
    writing = write_teacher_logits(
        tmp_path / "store", toy.data().train, toy.network(), manifest=manifest(), batch_size=10
    )
    next(writing)
    writing.close()
    with pytest.raises(ArtifactError, match="run the teacher_logits stage"):
        read_manifest(tmp_path / "store")


def test_a_store_that_is_switched_off_says_so(tmp_path: Path) -> None:
    write_switched_off(tmp_path / "store", manifest(enabled=False, shape=(0, 0, 0)))
    assert not read_manifest(tmp_path / "store").enabled


def test_writing_again_replaces_the_store(tmp_path: Path) -> None:
    write(tmp_path / "store", manifest())
    again = write(tmp_path / "store", manifest(dtype="float16"))
    assert again.dtype == "float16"
    shutil.rmtree(tmp_path / "store")
