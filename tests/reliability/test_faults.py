"""What a machine can do to a run: one clear line, nothing half-written that is taken for whole later, and a way on."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

from compress.checkpoint import CheckpointFolder
from compress.errors import TrainingError
from compress.files import read_json, write_json
from pipelines import __main__ as command_line
from pipelines.failures import one_line
from tests.reliability.outcome import differences, outcome
from tests.reliability.small_project import PIPELINE, is_full, refusal, run

KIB = 1024


@pytest.fixture(autouse=True)
def handler_of_interrupts() -> Generator[None]:
    """The command line sets its own, which the tests' runner must not keep."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """A file system of 8 MiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, *, free: int) -> Path:
    """Leave so many bytes free."""
    room = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(b"\0" * max(room.f_bavail * room.f_bsize - free, 0))
    return filler


@pytest.mark.parametrize("stage", PIPELINE)
@pytest.mark.parametrize("free", [0, *(pytest.param(size, marks=pytest.mark.slow) for size in (16 * KIB, 64 * KIB))])
def test_full_disk_is_one_line_and_the_stage_goes_on_once_there_is_room(
    before: dict[str, Path], small_disk: Path, stage: str, free: int
) -> None:
    names = list(PIPELINE)
    root = Path(shutil.copytree(before[stage], small_disk / "project"))
    filler = fill(small_disk, free=free)
    line = refusal(root, stage)
    filler.unlink()
    assert line is None or is_full(line), line
    assert line is not None or free, "a full disk went unnoticed"
    run(root, stage)
    after = before[[*names, ""][names.index(stage) + 1]]
    assert differences(outcome(after), outcome(root)) == []


@pytest.mark.parametrize("stage", ["prepare", "teacher", "teacher_logits", "export", "evaluate", "select"])
def test_disk_mounted_read_only_is_one_line(before: dict[str, Path], small_disk: Path, stage: str) -> None:
    root = Path(shutil.copytree(before[stage], small_disk / "project"))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    line = refusal(root, stage)
    assert line is not None
    assert os.strerror(errno.EROFS) in line
    assert "writable" in line or "choose another" in line


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "make room on that disk, then run the same command again"),
        (errno.EDQUOT, "free some of your quota"),
        (errno.EACCES, "change its permissions"),
        (errno.ENOENT, "it was removed meanwhile; run the same command again"),
    ],
)
def test_errors_of_the_system_say_what_to_do(number: int, advice: str) -> None:
    line = one_line(OSError(number, os.strerror(number), "data/x"))
    assert line.startswith(f"{os.strerror(number)}: data/x; ")
    assert advice in line


STATE = {"weight": torch.zeros(100_000)}


def test_checkpoint_that_the_disk_does_not_take_leaves_the_one_before(small_disk: Path) -> None:
    folder = CheckpointFolder(small_disk, "a" * 64)
    with folder.locked():
        folder.save(1, STATE | {"epoch": 1})
        filler = fill(small_disk, free=100 * KIB)
        with pytest.raises(TrainingError, match=r"the checkpoint of epoch 2 cannot be kept .* No space left"):
            folder.save(2, STATE | {"epoch": 2})
        filler.unlink()
        assert sorted(path.name for path in folder.folder.iterdir()) == ["epoch_00001.pt", "index.json", "lock"]
        state = folder.load()
    assert state is not None
    assert state["epoch"] == 1


def test_checkpoint_folder_that_disappears_is_named(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, "a" * 64)
    with folder.locked():
        folder.save(1, STATE)
        shutil.rmtree(folder.folder)
        with pytest.raises(TrainingError, match=r"cannot be kept in .*No such file.*run again"):
            folder.save(2, STATE)


def test_checkpoint_that_reads_back_differently_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(tmp_path, "a" * 64)
    with folder.locked():
        folder.save(1, STATE | {"epoch": 1})
        monkeypatch.setattr("compress.checkpoint.file_sha256", lambda path: "0" * 64)
        with pytest.raises(TrainingError, match="reads back other bytes"):
            folder.save(2, STATE | {"epoch": 2})
        monkeypatch.undo()
        state = folder.load()
    assert state is not None
    assert state["epoch"] == 1


FOREIGN_ENTRIES = json.dumps({"fingerprint": "a" * 64, "states": [{"file": "../x", "sha256": ""}, 3]})


@pytest.mark.parametrize("index", ["", "[]", "{", FOREIGN_ENTRIES])
def test_damaged_index_means_starting_again_and_no_traceback(tmp_path: Path, index: str) -> None:
    folder = CheckpointFolder(tmp_path, "a" * 64)
    with folder.locked():
        folder.save(1, STATE)
        (folder.folder / "index.json").write_text(index)
        assert folder.load() is None
        folder.save(2, STATE | {"epoch": 2})
        assert folder.load() is not None


def test_failed_write_leaves_the_old_file_and_names_it(small_disk: Path) -> None:
    write_json(small_disk / "x.json", {"value": 1})
    fill(small_disk, free=0)
    with pytest.raises(OSError, match="No space left") as caught:
        write_json(small_disk / "x.json", {"value": "2" * 10_000})
    assert caught.value.filename == str(small_disk / "x.json")
    assert sorted(path.name for path in small_disk.iterdir()) == ["filler", "x.json"]
    assert read_json(small_disk / "x.json", made_by="any") == {"value": 1}


def test_clock_that_jumps_changes_no_duration(
    before: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(before["teacher"], tmp_path / "project"))
    days = iter(range(10**6, 0, -1))
    monkeypatch.setattr(time, "time", lambda: 86400.0 * next(days))
    run(root, "teacher")
    seconds = read_json(root / "results" / "teacher" / "training.json", made_by="teacher")["seeds"][0]["train_seconds"]
    assert 0 < seconds < 600


@pytest.mark.parametrize(
    ("stage", "problem", "words"),
    [
        ("distill", "cpu", ("memory ran out", "train.micro_batch_size")),
        ("teacher", "cuda", ("the GPU's memory ran out", "teacher.train.micro_batch_size")),
        ("teacher-logits", "cpu", ("memory ran out", "teacher_logits.batch_size")),
        ("evaluate", "python", ("memory ran out", "evaluate.batch_size")),
    ],
)
def test_memory_that_runs_out_is_one_line_that_names_the_setting(
    stage: str,
    problem: str,
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def allocate(*arguments: object) -> None:
        if problem == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if problem == "python":
            raise MemoryError
        torch.empty(2**50)

    monkeypatch.setattr(f"pipelines.{stage.replace('-', '_')}.run", allocate)
    monkeypatch.setattr(sys, "argv", ["compress", stage, *(["x"] if stage in ("distill", "evaluate") else [])])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert all(word in lines[0] for word in words), lines[0]


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("pipelines.prepare.run", fail)
    monkeypatch.setattr(sys, "argv", ["compress", "prepare"])
    with pytest.raises(RuntimeError, match="a bug"):
        command_line.main()
