"""kill -9 and Ctrl-C under real DVC. `make kill-test` tries many more moments."""

import fcntl
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from secrets import token_urlsafe

import pytest

from pipelines.finished_work import drop_store, drop_training, keep_store, keep_training, take_store_back
from pipelines.layout import Layout
from pipelines.recover import BusyError, recover
from tests.pipelines.dvc_repository import environment, make_repository
from tests.pipelines.dvc_repository import run as run_in
from tests.pipelines.project import write_params
from tests.reliability.kill_test import Point, Verdict, draw_points, table, try_point
from tests.reliability.reference import Measured, Reference, kill_params, make_reference

CHOSEN = ("teacher_logits", "distill@with_nkd", "select")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Nobody killed it."""
    return make_reference(tmp_path_factory.mktemp("reference"), CHOSEN)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "process", "whom", "share"),
    [
        ("distill@with_nkd", "stage", "both", 0.5),
        ("distill@with_nkd", "dvc", "dvc", 0.8),
        ("select", "stage", "stage", 0.5),
    ],
)
def test_killed_pipeline_goes_on_to_the_same_bits(
    reference: Reference, tmp_path: Path, stage: str, process: str, whom: str, share: float
) -> None:
    measured = next(each for each in reference.stages if each.stage == stage)
    operation = int(share * measured.operations[process])
    verdict = try_point(reference, Point(0, stage, process, operation, 0.0, whom, whom == "both"), tmp_path)
    assert verdict.landed
    assert verdict.problem == ""


@pytest.mark.slow
def test_difference_is_found(reference: Reference, tmp_path: Path) -> None:
    """The test can fail: against a reference with another hash every run is different."""
    changed = Reference(reference.stages, {**reference.outcome, "models/teacher/weights.safetensors": "0"})
    verdict = try_point(changed, Point(0, "select", "stage", 1, 0.0, "stage", False), tmp_path)
    assert verdict.problem == "differs: models/teacher/weights.safetensors"


def test_points_are_over_all_stages_and_the_same_for_a_seed() -> None:
    stages = tuple(Measured(name, Path(), 1.0, {"stage": 10, "dvc": 10}) for name in CHOSEN)
    reference = Reference(stages, {})
    points = draw_points(reference, 50, seed=3)
    assert points == draw_points(reference, 50, seed=3) != draw_points(reference, 50, seed=4)
    assert {point.stage for point in points} == set(CHOSEN)
    assert {point.whom for point in points} == {"stage", "dvc", "both"}
    shown = table([Verdict(points[0], True, "1", ""), Verdict(points[1], True, "", "differs: x")])
    assert shown.splitlines()[1].endswith("yes")
    assert shown.splitlines()[2].endswith("NO: differs: x")


@pytest.mark.slow
def test_ctrl_c_under_dvc_leaves_no_process_no_lock_and_a_state_to_go_on_from(tmp_path: Path) -> None:
    values = kill_params()
    values["teacher"]["train"] = {**values["teacher"]["train"], "epochs": 300}
    root = make_repository(tmp_path, values)
    write_params(root, values)
    run_in(root, "dvc", "repro", "-s", "prepare")
    with (tmp_path / "printed").open("w+") as log:
        process = subprocess.Popen(
            ["dvc", "repro", "-s", "teacher"],
            cwd=root, env=environment(), stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        _wait_for(lambda: any(root.glob(".work/teacher/*/*/epoch_*.pt")))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to DVC and the stage
        assert process.wait(60) != 0
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
        log.seek(0)
        printed = log.read()
    assert "compress: interrupted; run the same command again to go on" in printed
    assert "exited with 130" in printed
    assert "Traceback" not in printed
    assert re.search(r"teacher: continuing after epoch \d+/300", run_in(root, "dvc", "repro", "-s", "teacher"))


def _wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class TestRecover:
    def test_readable_files_are_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
        lock = "schema: '2.0'\nstages:\n  a:\n    cmd: x\n    outs:\n    - path: y\n      hash: md5\n      md5: z\n"
        (tmp_path / "dvc.lock").write_text(lock)
        (tmp_path / ".dvc" / "tmp" / "rwlock").write_text('{"read": {}}')
        assert recover(tmp_path) == []
        assert (tmp_path / "dvc.lock").read_text() == lock

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("dvc.lock", ""),
            ("dvc.lock", "schema: '2.0'\nstages:\n  a:\n    cmd: x\n    outs:\n    - path: y\n      ha"),
            ("dvc.lock", "schema: '2.0'\nstages:\n  a:\n    cmd: x\n    outs:\n    - path: y\n"),
            ("dvc.lock", "schema: '2.0'\nstages:\n  a"),
            (".dvc/tmp/rwlock", ""),
            (".dvc/tmp/rwlock", '{"read": {"/a'),
        ],
    )
    def test_what_a_killed_dvc_left_half_written_is_set_aside(self, tmp_path: Path, name: str, content: str) -> None:
        (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
        (tmp_path / name).write_text(content)
        (line,) = recover(tmp_path)
        assert line.startswith(f"{name} was damaged")
        assert not (tmp_path / name).exists()
        assert (tmp_path / f"{name}.damaged").read_text() == content

    def test_copies_that_a_killed_dvc_left_among_the_outputs_are_removed(self, tmp_path: Path) -> None:
        folder = tmp_path / "results" / "small"
        folder.mkdir(parents=True)
        ours = [folder / name for name in ("run.json", ".run.json.partial", ".short.tmp", "0x5MnYBpfRCRYyddvHYXRg.tmp")]
        left = tmp_path / "results" / "small" / f".{token_urlsafe(16)}.tmp"
        for path in (*ours, left):
            path.write_text("{}")
        assert recover(tmp_path) == [f"results/small/{left.name} was left by a killed DVC; it is removed"]
        assert set(folder.iterdir()) == set(ours)
        assert recover(tmp_path) == []

    def test_nothing_is_touched_while_dvc_is_at_work(self, tmp_path: Path) -> None:
        (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
        (tmp_path / "dvc.lock").write_text("")
        with (tmp_path / ".dvc" / "tmp" / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(BusyError, match="DVC is at work"):
                recover(tmp_path)
        assert (tmp_path / "dvc.lock").exists()


def store_that_became_an_output(project: Path) -> Path:
    """A store of logits as its stage leaves it; where it was written."""
    work = Layout(project).work("teacher_logits") / "partial"
    work.mkdir(parents=True)
    (work / "rows").write_bytes(b"1234")
    keep_store(work)
    work.rename(project / "output")
    return work


class TestFinishedWork:
    def test_training_is_kept_until_its_network_is_exported(self, tmp_path: Path) -> None:
        layout = Layout(tmp_path)
        for name in ("first", "second"):
            keep_training(layout.work("distill") / name, name)
        drop_training(layout, "first")
        assert [path.name for path in layout.work("distill").iterdir()] == ["second"]

    def test_unfinished_training_is_never_dropped(self, tmp_path: Path) -> None:
        folder = Layout(tmp_path).work("distill") / "first"
        folder.mkdir(parents=True)
        drop_training(Layout(tmp_path), "first")
        assert folder.is_dir()

    def test_store_comes_back_after_its_output_is_deleted(self, tmp_path: Path) -> None:
        work = store_that_became_an_output(tmp_path)
        (tmp_path / "output" / "rows").unlink()  # as DVC does before it runs the stage again
        assert take_store_back(work)
        assert (work / "rows").read_bytes() == b"1234"
        assert not take_store_back(work)

    def test_store_that_was_read_leaves_nothing(self, tmp_path: Path) -> None:
        work = store_that_became_an_output(tmp_path)
        drop_store(Layout(tmp_path))
        assert not take_store_back(work)
        assert (tmp_path / "output" / "rows").read_bytes() == b"1234"
