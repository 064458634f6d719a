"""A store's bytes do not depend on who wrote them, in how many goes; memory does not grow with it."""

import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compress import logit_journal, store_place
from compress.data.prepared import ArraySplit
from compress.data.view_schedule import ViewSettings
from compress.data.views import NoAugmentation
from compress.errors import ArtifactError, ModelError
from compress.logit_journal import ASKED, ChunkWriter, Shard, finished_chunks
from compress.logit_store import LOGITS, MANIFEST, TeacherLogitsManifest, read_manifest
from compress.teacher_logits_writer import (
    Question,
    begin_writing,
    finish_writing,
    new_manifest,
    write_chunks,
    write_teacher_logits,
)
from compress.teacher_pass import prepare_pass
from tests.compress import toy, toy_store

ROOT = Path(__file__).parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def uninterrupted(tmp_path: Path) -> dict[str, bytes]:
    toy_store.write(tmp_path / "uninterrupted")
    return contents(tmp_path / "uninterrupted")


def write_some(folder: Path, num_rows: int, **changes: Any) -> None:
    """A writer that is interrupted once it has stored this many views."""
    asked = toy_store.teacher()
    writing = write_teacher_logits(folder, toy.data().train, asked, manifest=toy_store.planned(asked, **changes))
    while next(writing) < num_rows:
        pass
    writing.close()


def go_on(folder: Path, **changes: Any) -> list[int]:
    asked = toy_store.teacher()
    return list(write_teacher_logits(folder, toy.data().train, asked, manifest=toy_store.planned(asked, **changes)))


def begin_anew(work: Path, **changes: Any) -> logit_journal.Begun:
    asked = toy_store.teacher()
    return begin_writing(work, work.with_name("store"), toy_store.planned(asked, **changes))


def test_a_store_holds_two_files(uninterrupted: dict[str, bytes]) -> None:
    assert uninterrupted.keys() == {LOGITS, MANIFEST}


@pytest.mark.parametrize("num_rows", [1, 10, 34, toy_store.NUM_ROWS])
def test_an_interrupted_writer_leaves_no_store_and_goes_on_to_the_same_bytes(
    tmp_path: Path, uninterrupted: dict[str, bytes], num_rows: int
) -> None:
    write_some(tmp_path / "store", num_rows)
    assert not (tmp_path / "store").exists()
    counts = go_on(tmp_path / "store")
    whole_chunks = num_rows // 10 * 10 if num_rows < toy_store.NUM_ROWS else num_rows
    after_batches = np.cumsum([4, 4, 2] * 10 + [4]).tolist()
    assert counts == [num_done for num_done in after_batches if num_done > whole_chunks]
    assert contents(tmp_path / "store") == uninterrupted
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "uninterrupted"]


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from compress.teacher_logits_writer import write_teacher_logits
from tests.compress import toy, toy_store
asked = toy_store.teacher()
for num_done in write_teacher_logits(
    Path(sys.argv[1]), toy.data().train, asked, manifest=toy_store.planned(asked)
):
    if num_done > 34:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_goes_on_to_the_same_bytes(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    command = [sys.executable, "-c", KILLED_WRITER, str(tmp_path / "store")]
    killed = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "store").exists()
    assert go_on(tmp_path / "store")[0] == 34  # three whole chunks were there, and one batch more is done
    assert contents(tmp_path / "store") == uninterrupted


def test_a_chunk_whose_line_is_torn_is_written_again(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    write_some(tmp_path / "store", 54)
    journal = tmp_path / ".store.partial" / "journal-0-of-1"
    journal.write_bytes(journal.read_bytes()[:-20])
    assert go_on(tmp_path / "store")[0] == 44
    assert contents(tmp_path / "store") == uninterrupted


def test_a_chunk_that_is_not_what_its_line_says_is_written_again(
    tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    write_some(tmp_path / "store", 54)
    work, manifest = tmp_path / ".store.partial", toy_store.planned()
    rows = bytearray((work / LOGITS).read_bytes())
    rows[len(manifest.header) + 10 * manifest.row_format.row_bytes + 5] ^= 1
    (work / LOGITS).write_bytes(rows)
    assert sorted(finished_chunks(work, manifest)) == [0, 2, 3, 4]
    assert go_on(tmp_path / "store")[0] == 44
    assert contents(tmp_path / "store") == uninterrupted


@pytest.mark.parametrize("num_ranks", [1, 3, 20])
def test_several_processes_write_the_same_bytes_as_one(
    tmp_path: Path, uninterrupted: dict[str, bytes], num_ranks: int
) -> None:
    asked = toy_store.teacher()
    manifest = toy_store.planned(asked)
    work, folder = tmp_path / "work", tmp_path / "store"
    begin_writing(work, folder, manifest)
    counts = [
        list(write_chunks(work, toy.data().train, toy_store.teacher(), manifest=manifest, shard=Shard(r, num_ranks)))
        for r in reversed(range(num_ranks))
    ]
    assert sum(count[-1] for count in counts if count) == toy_store.NUM_ROWS
    finish_writing(work, folder, manifest)
    assert contents(folder) == uninterrupted


def test_a_writing_that_three_began_can_be_finished_by_one(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    asked = toy_store.teacher()
    manifest = toy_store.planned(asked)
    work = tmp_path / ".store.partial"
    begin_writing(work, tmp_path / "store", manifest)
    list(write_chunks(work, toy.data().train, asked, manifest=manifest, shard=Shard(1, 3)))
    assert begin_anew(work).num_rows_done == 34  # the last chunk has four rows
    go_on(tmp_path / "store")
    assert contents(tmp_path / "store") == uninterrupted


def test_a_store_with_missing_chunks_is_not_finished(tmp_path: Path) -> None:
    asked = toy_store.teacher()
    manifest = toy_store.planned(asked)
    begin_writing(tmp_path / "work", tmp_path / "store", manifest)
    list(write_chunks(tmp_path / "work", toy.data().train, asked, manifest=manifest, shard=Shard(0, 2)))
    with pytest.raises(ArtifactError, match=r"5 of 11 chunks in .* are not written, the first is 1; run"):
        finish_writing(tmp_path / "work", tmp_path / "store", manifest)
    assert not (tmp_path / "store").exists()


def test_nobody_writes_before_one_has_begun(tmp_path: Path) -> None:
    writing = write_chunks(tmp_path, toy.data().train, toy_store.teacher(), manifest=toy_store.planned())
    with pytest.raises(ArtifactError, match="one process has to begin"):
        next(writing)


def test_a_second_writer_is_refused_while_the_first_writes(tmp_path: Path) -> None:
    asked = toy_store.teacher()
    manifest = toy_store.planned(asked)
    first = write_teacher_logits(tmp_path / "store", toy.data().train, asked, manifest=manifest)
    next(first)
    for another in ({}, {"dtype": "uint8"}):
        with pytest.raises(ArtifactError, match="another process is already writing teacher logits"):
            go_on(tmp_path / "store", **another)
    assert len([*first]) > 20
    assert read_manifest(tmp_path / "store").dtype == "float32"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"dtype": "uint8"}, "dtype"),
        ({"dtype": "float16", "top_k": 2}, "dtype, top_k"),
        ({"rows_per_chunk": 11}, "rows_per_chunk"),
        ({"batch_size": 5}, r"computation\.batch_size"),
    ],
)
def test_a_partial_store_of_other_settings_is_discarded_by_name(
    tmp_path: Path, changes: dict[str, Any], name: str
) -> None:
    write_some(tmp_path / "store", 34)
    begun = begin_anew(tmp_path / ".store.partial", **changes)
    assert begun.num_rows_done == 0
    assert begun.discarded == f"it has another {name}".replace("\\", "")


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher_sha256": "b" * 64},
        {"data_fingerprint": "b" * 64},
        {"views": toy.VIEWS.model_copy(update={"seed": 6})},
        {"computation": {"threads": 7}},
        {"computation": {"precision": "bfloat16"}},
        {"computation": {"torch": "2.0"}},
    ],
    ids=str,
)
def test_a_partial_store_of_other_answers_is_discarded_by_name(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_some(tmp_path / "store", 34)
    asked = toy_store.teacher()
    manifest = toy_store.planned(asked)
    assert manifest.computation is not None
    if inner := changes.get("computation"):
        changes = {"computation": manifest.computation.model_copy(update=inner)}
    other = manifest.model_copy(update=changes)
    begun = begin_writing(tmp_path / ".store.partial", tmp_path / "store", other)
    assert begun.num_rows_done == 0
    assert next(iter(inner or changes)) in (begun.discarded or "")


def test_a_partial_store_of_other_code_is_discarded_by_name(tmp_path: Path) -> None:
    write_some(tmp_path / "store", 34)
    begun = logit_journal.begin(tmp_path / ".store.partial", toy_store.planned(), code="c" * 64)
    assert begun == (0, "it has another code")


def test_an_unreadable_partial_store_is_discarded(tmp_path: Path) -> None:
    write_some(tmp_path / "store", 34)
    (tmp_path / ".store.partial" / ASKED).write_text("[")
    assert begin_anew(tmp_path / ".store.partial") == (0, "asked.json is damaged")


def test_the_measured_error_of_the_pass_does_not_discard_anything(tmp_path: Path) -> None:
    write_some(tmp_path / "store", 34)
    asked = toy_store.teacher()
    manifest = toy_store.planned(asked).model_copy(update={"pass_error": 0.5})
    assert begin_writing(tmp_path / ".store.partial", tmp_path / "store", manifest) == (30, None)


def test_writing_again_replaces_the_store(tmp_path: Path) -> None:
    toy_store.write(tmp_path / "store")
    (tmp_path / ".store.previous").mkdir()  # of a process that was killed
    again = toy_store.write(tmp_path / "store", dtype="float16")
    assert again.dtype == "float16"
    assert contents(tmp_path / "store").keys() == {LOGITS, MANIFEST}
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_store_reaches_another_disk_by_copying(
    tmp_path: Path, uninterrupted: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_place, "_disk_of", lambda path: int("work" in path.name))
    asked = toy_store.teacher()
    manifest = toy_store.planned(asked)
    folder, work = tmp_path / "store", tmp_path / "work"
    list(write_teacher_logits(folder, toy.data().train, asked, manifest=manifest, work=work))
    assert contents(folder) == uninterrupted
    assert not work.exists()


Usage = namedtuple("Usage", "total used free")


def test_a_disk_without_room_is_an_error_before_the_teacher_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 100))
    split, manifest, asked = wide_store(512)
    writing = write_teacher_logits(tmp_path / "store", split, asked, manifest=manifest)
    with pytest.raises(ArtifactError, match=r"need 0\.8 MB more on the disk.*set teacher_logits\.dtype: uint8"):
        next(writing)


def test_what_is_written_already_needs_no_more_room(tmp_path: Path) -> None:
    manifest = toy_store.planned()
    assert store_place.missing_bytes(tmp_path / "nothing", manifest) == manifest.size_bytes
    write_some(tmp_path / "store", toy_store.NUM_ROWS)
    assert store_place.missing_bytes(tmp_path / ".store.partial", manifest) == 0


def test_a_disk_that_becomes_full_says_how_to_go_on(tmp_path: Path) -> None:
    manifest = toy_store.planned()
    with Path("/dev/full").open("r+b", buffering=0) as full, (tmp_path / "journal").open("wb") as journal:
        writer = ChunkWriter(full, journal, manifest)
        with pytest.raises(ArtifactError, match=r"the disk became full.*goes on after the last whole chunk"):
            writer.write(range(4), np.zeros((4, 3), np.float32))


def test_logits_too_large_for_float16_are_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="dtype: float32"):
        toy_store.write(tmp_path / "store", dtype="float16", scale=1e7)
    assert not (tmp_path / "store").exists()


def wide_store(num_images: int) -> tuple[ArraySplit, TeacherLogitsManifest, Any]:
    """Four hundred classes, so that the answers are larger than all else."""
    pixels = np.random.default_rng(0).integers(0, 255, (num_images, 4, 4, 3), dtype=np.uint8)
    split = ArraySplit(pixels, np.zeros(num_images, np.int64))
    views = ViewSettings(augmentation=NoAugmentation(), views_per_image=1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 400))
    asked = prepare_pass(network, torch.rand(2, 3, 4, 4))
    question = Question(toy_store.TEACHER, toy_store.DATA, views, num_images=num_images, num_classes=400)
    return split, new_manifest(toy_store.settings(rows_per_chunk=64, batch_size=32), question, asked), asked


def test_memory_does_not_grow_with_the_store(tmp_path: Path) -> None:
    peaks = {}
    for num_images in (512, 4096):
        split, manifest, asked = wide_store(num_images)
        tracemalloc.start()
        for _ in write_teacher_logits(tmp_path / str(num_images), split, asked, manifest=manifest):
            pass
        _, peaks[num_images] = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    size = read_manifest(tmp_path / "4096").size_bytes
    assert size > 6e6
    assert peaks[4096] < peaks[512] + 0.02 * size  # records of chunks, and no rows
    assert peaks[4096] < size / 4
