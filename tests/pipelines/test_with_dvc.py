"""The real thing: real DVC runs the real stages in a repository of its own, and reruns exactly what it must."""

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.dvc_repository import environment, make_repository, reproduced, run
from tests.pipelines.project import params, write_params

pytestmark = pytest.mark.slow


def small_params(root: Path) -> dict[str, Any]:
    """Two students, one from each group: every stage is a process, and starting them is what takes time here."""
    values = params(root / "pictures")
    del values["students"]["distilled"]["with_kd"]
    forms = {"candidates": [{"name": "int8_static"}], "num_calibration_images": 8, "threads": 1, "min_seconds": 0.05}
    values["export"]["forms"] = forms
    return values


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage has run once."""
    root = tmp_path_factory.mktemp("repository")
    make_repository(root, small_params(root))
    assert "select" in reproduced(root)
    return root


def chain(group: str, *names: str) -> set[str]:
    """Everything that follows from retraining students of a group."""
    suffix = "_free" if group == "teacher_free" else ""
    stages = ("distill", "export", "evaluate")
    return {f"{stage}{suffix}@{name}" for stage in stages for name in names} | {"select"}


def test_a_second_run_does_nothing(repository: Path) -> None:
    assert reproduced(repository) == set()


def test_editing_a_method_reruns_its_students_only(repository: Path) -> None:
    path = repository / "compress" / "methods" / "nkd.py"
    path.write_text(path.read_text() + "\n# edited\n")
    assert reproduced(repository) == chain("distilled", "with_nkd")


def test_editing_a_quantiser_searches_again_and_trains_nothing(repository: Path) -> None:
    path = repository / "compress" / "quantize" / "int8_static.py"
    path.write_text(path.read_text() + "\n# edited\n")
    ran = reproduced(repository)
    assert {"export@with_nkd", "export_free@alone"} <= ran
    assert not any(stage.startswith(("prepare", "teacher", "distill")) for stage in ran)


def test_a_new_method_reruns_nothing(repository: Path) -> None:
    (repository / "compress" / "methods" / "another.py").write_text('"""Not used yet."""\n')
    registry = repository / "compress" / "methods" / "__init__.py"
    registry.write_text(registry.read_text() + "\n# another\n")
    assert reproduced(repository) == set()


def test_editing_a_row_reruns_that_student_only(repository: Path) -> None:
    values = small_params(repository)
    values["students"]["teacher_free"]["alone"]["train"] = {
        **values["students"]["teacher_free"]["alone"]["train"],
        "batch_size": 8,
    }
    write_params(repository, values)
    assert reproduced(repository) == chain("teacher_free", "alone") | {"prepare_names"}


def test_going_back_restores_from_the_cache_without_training(repository: Path) -> None:
    write_params(repository, small_params(repository))
    assert "distill_free@alone" not in reproduced(repository)


def test_editing_a_constraint_reruns_the_selection_only(repository: Path) -> None:
    write_params(repository, small_params(repository) | {"select": {"max_size_mb": 2.0}})
    assert reproduced(repository) == {"select"}


def test_nothing_that_dvc_keeps_would_go_into_git(repository: Path) -> None:
    listed = run(repository, "git", "status", "--short", "--untracked-files=all")
    assert not re.search(r"\.(onnx|safetensors|npy|db)$", listed, flags=re.MULTILINE)
    assert "metrics/students.json" in listed


def test_metrics_and_plots_render(repository: Path) -> None:
    metrics = json.loads(run(repository, "dvc", "metrics", "show", "--json"))
    shown = metrics[""]["data"]
    assert shown["metrics/champion.json"]["data"]["champion"] is True
    assert "accuracy_top1" in shown["results/with_nkd/evaluation.json"]["data"]["metrics"]
    run(repository, "dvc", "plots", "show", "--out", "plots")
    page = (repository / "plots" / "index.html").read_text()
    assert "reports/learning_curves.csv" in page
    assert "results/with_nkd/confusion.csv" in page


def test_a_killed_training_goes_on_to_the_same_bits(repository: Path) -> None:
    """kill -9 for the stage in the middle of training; the next `dvc repro` continues after the last epoch."""
    values = small_params(repository)
    values["students"]["distilled"]["with_nkd"]["train"]["epochs"] = 200
    write_params(repository, values)
    stage = ["dvc", "repro", "-s", "distill@with_nkd"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(stage, cwd=repository, env=environment(), stdout=quiet, stderr=quiet)
    _wait_for_checkpoint(repository, epoch=3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _wait_until_gone(repository)
    assert re.search(r"with_nkd: continuing after epoch \d+/200", run(repository, *stage))
    weights = repository / "models" / "with_nkd" / "seed_0" / "last" / "weights.safetensors"
    resumed = weights.read_bytes()
    shutil.rmtree(repository / "models" / "with_nkd")
    shutil.rmtree(repository / ".work")  # where the finished training is kept until its network is exported
    run(repository, "dvc", "repro", "-s", "-f", "--no-run-cache", "distill@with_nkd")
    assert weights.read_bytes() == resumed


def _wait_for_checkpoint(root: Path, *, epoch: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(int(path.stem[-5:]) >= epoch for path in root.glob(".work/distill/*/*/epoch_*.pt")):
            return
        time.sleep(0.02)
    raise AssertionError("no checkpoint appeared")


def _wait_until_gone(root: Path) -> None:
    """The stage dies with DVC: its checkpoint lock is free soon after."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        commands = [path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if _is_stage(path)]
        if not any(_works_in(process, root) for process in commands):
            return
        time.sleep(0.1)
    raise AssertionError("the stage outlived DVC")


def _is_stage(command_line: Path) -> bool:
    try:
        return b"pipelines\0distill\0with_nkd" in command_line.read_bytes()
    except OSError:
        return False  # gone meanwhile


def _works_in(process: Path, root: Path) -> bool:
    try:
        return (process / "cwd").resolve() == root.resolve()
    except OSError:
        return False
