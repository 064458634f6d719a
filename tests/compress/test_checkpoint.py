"""Training states that are whole, ours and current, or not used at all."""

import multiprocessing
from pathlib import Path

import pytest
import torch

from compress.checkpoint import CheckpointFolder
from compress.errors import TrainingError

STATE = {"weight": torch.arange(3.0), "epoch": 1}


def test_the_newest_state_comes_back(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, "a" * 64)
    with folder.locked():
        for epoch in (1, 2, 3):
            folder.save(epoch, STATE | {"epoch": epoch})
    state = CheckpointFolder(tmp_path, "a" * 64).load()
    assert state is not None
    assert state["epoch"] == 3
    assert torch.equal(state["weight"], STATE["weight"])


def test_only_two_states_stay_on_disk(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, "a" * 64)
    with folder.locked():
        for epoch in range(1, 6):
            folder.save(epoch, STATE)
    assert sorted(path.name for path in folder.folder.glob("epoch_*")) == ["epoch_00004.pt", "epoch_00005.pt"]


def test_a_damaged_newest_state_falls_back_to_the_one_before(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, "a" * 64)
    with folder.locked():
        folder.save(1, STATE | {"epoch": 1})
        folder.save(2, STATE | {"epoch": 2})
    newest = folder.folder / "epoch_00002.pt"
    newest.write_bytes(newest.read_bytes()[:-10])
    state = folder.load()
    assert state is not None
    assert state["epoch"] == 1


def test_a_half_written_file_is_not_seen(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, "a" * 64)
    with folder.locked():
        (folder.folder / "epoch_00009.pt.tmp").write_bytes(b"half")
        assert folder.load() is None


def test_other_settings_do_not_see_this_state(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, "a" * 64)
    with folder.locked():
        folder.save(1, STATE)
    assert CheckpointFolder(tmp_path, "b" * 64).load() is None


def test_a_state_copied_from_other_settings_is_not_used(tmp_path: Path) -> None:
    folder, other = CheckpointFolder(tmp_path, "a" * 64), CheckpointFolder(tmp_path, "b" * 64)
    with folder.locked():
        folder.save(1, STATE)
    folder.folder.rename(other.folder)
    assert other.load() is None


def _hold(path: Path, held: "multiprocessing.synchronize.Event", done: "multiprocessing.synchronize.Event") -> None:
    with CheckpointFolder(path, "a" * 64).locked():
        held.set()
        done.wait(30)


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, held, done))
    process.start()
    assert held.wait(60)
    with pytest.raises(TrainingError, match="another process"), CheckpointFolder(tmp_path, "a" * 64).locked():
        pass
    done.set()
    process.join(30)


@pytest.mark.parametrize("number", range(1, 9))
def test_ctrl_c_while_a_state_is_written_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """torch's writer makes an error of its own of whatever ends a write."""

    class Interrupted(BaseException):
        pass

    class Pressed:
        count = 0

        def update(self, content: object) -> None:
            self.count += 1
            if self.count == number:
                raise Interrupted

    folder = CheckpointFolder(tmp_path, "f" * 64)
    monkeypatch.setattr("compress.checkpoint.hashlib.sha256", Pressed)
    with folder.locked(), pytest.raises(Interrupted):
        folder.save(1, {"weight": torch.zeros(3)})
