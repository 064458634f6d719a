"""The real thing: torchrun starts the stages of a small project on two ranks, and one of them may die."""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from compress.files import read_json
from compress.logit_store import LOGITS
from pipelines import distill, prepare, teacher, teacher_logits
from pipelines.layout import Layout
from tests.pipelines.dvc_repository import ROOT, environment, make_repository
from tests.pipelines.dvc_repository import run as run_in
from tests.pipelines.project import TRAIN, make_project, params, write_params

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
DYING = textwrap.dedent(
    """
    import os, signal
    from pipelines import training
    from pipelines.__main__ import main

    keep = training._Opened.keep

    def keep_and_die(self, report):
        keep(self, report)
        if (report.epoch, os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == (2, "1", "0"):
            os.kill(os.getpid(), signal.SIGKILL)

    training._Opened.keep = keep_and_die
    main()
    """
)


def small_params(root: Path) -> dict[str, Any]:
    """Batches of 10 of 36 images: ranks share them unevenly, and the last has 6."""
    values = params(root / "pictures")
    train = {**TRAIN, "epochs": 3, "batch_size": 10, "ema_decay": 0.5}
    values["teacher"]["train"] = train
    values["teacher_logits"] |= {"rows_per_chunk": 16, "batch_size": 8}
    for group in values["students"].values():
        for row in group.values():
            row["train"] = train
    return values


def torchrun(root: Path, *command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A command of the pipeline on two ranks, as the guide has it."""
    program = ("-m", "pipelines") if not command[0].endswith(".py") else (command[0],)
    words = command if program[0] == "-m" else command[1:]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options, *program]
    settings = {**environment(), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*launch, "--project", str(root), *words],
        cwd=root, capture_output=True, text=True, env=settings, check=False, timeout=200,
    )  # fmt: skip


def done(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def untaught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images are prepared."""
    root = make_project(tmp_path_factory.mktemp("untaught"))
    write_params(root, small_params(root))
    prepare.run(root)
    return root


@pytest.fixture(scope="module")
def taught(untaught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks have trained the teacher; nobody has asked it."""
    root = tmp_path_factory.mktemp("taught") / "project"
    shutil.copytree(untaught, root)
    output = done(torchrun(root, "teacher"))
    assert output.count("epoch 3/3") == 1, "one rank speaks"
    return root


@pytest.fixture(scope="module")
def answered(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks have asked the teacher."""
    root = tmp_path_factory.mktemp("answered") / "project"
    shutil.copytree(taught, root)
    assert done(torchrun(root, "teacher-logits")).count("largest error") == 1
    return root


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "weights.safetensors")


def assert_close(folder: Path, other: Path) -> None:
    expected, found = weights(folder), weights(other)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=TOLERANCE, rtol=TOLERANCE, err_msg=name)


def losses(root: Path, name: str) -> list[list[float]]:
    """Everything in history.csv but seeds, epochs and the speed."""
    rows = (Layout(root).results(name) / "history.csv").read_text().splitlines()[1:]
    return [[float(value) for value in row.split(",")[2:-1]] for row in rows]


def test_two_ranks_train_the_teacher_that_one_trains(untaught: Path, taught: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(untaught, alone)
    teacher.run(alone)
    assert_close(Layout(alone).teacher, Layout(taught).teacher)
    assert np.allclose(losses(alone, "teacher"), losses(taught, "teacher"), atol=2e-5)


def test_two_ranks_store_the_bytes_that_one_stores(taught: Path, answered: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(taught, alone)
    teacher_logits.run(alone)
    for name in (LOGITS, "manifest.json"):
        stored = [(Layout(root).teacher_logits / name).read_bytes() for root in (alone, answered)]
        assert stored[0] == stored[1], name


def test_two_ranks_train_the_student_that_one_trains(answered: Path, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    for root in (alone, together):
        shutil.copytree(answered, root)
    distill.run(alone, "with_kd")
    output = done(torchrun(together, "distill", "with_kd"))
    assert output.count("epoch 3/3") == 2, "two seeds, of which one rank speaks"
    for seed in (0, 1):
        for which in ("last", "best"):
            assert_close(
                Layout(alone).trained("with_kd", seed, which), Layout(together).trained("with_kd", seed, which)
            )
    assert np.allclose(losses(alone, "with_kd"), losses(together, "with_kd"), atol=2e-5)
    fingerprints = [
        read_json(Layout(root).results("with_kd") / "training.json", made_by="distill") for root in (alone, together)
    ]
    assert fingerprints[0]["seeds"][0]["fingerprint"] == fingerprints[1]["seeds"][0]["fingerprint"]


def test_after_a_killed_rank_torchrun_goes_on_to_the_same_bits(untaught: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for root in (whole, killed):
        shutil.copytree(untaught, root)
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    done(torchrun(whole, "distill", "alone"))
    result = torchrun(killed, str(script), "distill", "alone", options=("--max-restarts=1",))
    assert "continuing after epoch" in done(result)
    assert "SIGKILL" in result.stderr or "exitcode: -9" in result.stderr
    for which in ("last", "best"):
        first, second = (weights(Layout(root).trained("alone", 0, which)) for root in (whole, killed))
        assert all((value == second[name]).all() for name, value in first.items())
    assert losses(whole, "alone") == losses(killed, "alone")


def test_a_dead_rank_without_restarts_ends_the_job(untaught: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(untaught, root)
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    result = torchrun(root, str(script), "distill", "alone")
    assert result.returncode == 1
    assert "-9" in result.stderr
    assert not Layout(root).model("alone").exists()


def test_what_a_user_can_put_right_is_one_line_of_each_rank(untaught: Path) -> None:
    result = torchrun(untaught, "distill", "nobody")
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("compress: ")]
    assert lines
    assert all("no student 'nobody' in params.yaml" in line for line in lines)


def test_dvc_records_at_once_what_torchrun_has_trained(tmp_path: Path) -> None:
    """The stage finds the last checkpoint, and its outputs are those of the ranks."""
    root = tmp_path / "repository"
    make_repository(root, small_params(root))
    run_in(root, "dvc", "repro", "prepare")
    done(torchrun(root, "distill", "alone"))
    before = weights(Layout(root).trained("alone", 0, "last"))
    output = run_in(root, "dvc", "repro", "distill_free@alone")
    assert "continuing after epoch 3/3" in output
    after = weights(Layout(root).trained("alone", 0, "last"))
    assert all((value == after[name]).all() for name, value in before.items())
    assert "Running stage" not in run_in(root, "dvc", "repro", "distill_free@alone")
