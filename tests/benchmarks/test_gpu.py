"""The GPU benchmark runs from end to end, here on tiny data on a CPU, and no section stops the others."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import carry, cifar, imagenet, machine
from benchmarks.gpu.checks import CHECKS, checks
from benchmarks.gpu.report import Report
from benchmarks.gpu.workload import Scale, quick

ROOT = Path(__file__).parents[2]


@pytest.fixture
def scale() -> Scale:
    return quick(torch.device("cpu"))


def test_a_section_that_fails_is_written_down_and_the_others_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(seconds: float) -> dict[str, Any]:
        raise ZeroDivisionError(f"after {seconds:.0f} seconds")

    report = Report(tmp_path / "deep" / "gpu.json", seconds=60, facts={"machine": {}})
    report.add("broken", broken, seconds=5)
    report.add("whole", lambda seconds: {"allowed": round(seconds)}, seconds=1000)
    written = json.loads((tmp_path / "deep" / "gpu.json").read_text())["sections"]
    assert written["broken"]["error"] == "ZeroDivisionError: after 5 seconds"
    assert "in broken" in written["broken"]["traceback"]
    assert written["whole"]["allowed"] == 60
    assert "traceback" not in capsys.readouterr().out


def test_every_section_has_its_place_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without time nothing is measured, and the file says so."""
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(out), "--seconds", "0", "--quick", "--device", "cpu"])
    monkeypatch.setattr(carry, "SITE", tmp_path)  # what was carried is for another Python
    command.main()
    written = json.loads(out.read_text())
    assert list(written["sections"]) == ["peak", "checks", "step", "one_student", "six_students", "imagenet"]
    assert {section["skipped"] for section in written["sections"].values()} == {"no time was left"}
    assert written["machine"]["device"] == "cpu"
    assert written["quick"]
    assert str(out) in capsys.readouterr().out


def test_checks_hold_on_a_cpu(scale: Scale) -> None:
    found = checks(scale, 1.0)
    assert found["ok"], found
    assert found.keys() >= CHECKS.keys()


def test_a_check_that_fails_does_not_stop_the_others(scale: Scale, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> dict[str, Any]:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr("benchmarks.gpu.checks.CHECKS", {"a": broken, "b": lambda *_: {"ok": True}})
    found = checks(scale, 1.0)
    assert found["a"] == {"ok": False, "error": "RuntimeError: CUDA error"}
    assert found["b"]["ok"]
    assert not found["ok"]


def test_the_recipe_says_whether_it_was_run_or_extrapolated(scale: Scale, monkeypatch: pytest.MonkeyPatch) -> None:
    found = cifar.whole_recipe(scale, 0.0, num_students=2)
    assert found["epochs_run"] == 2
    assert found["how"] == "extrapolated to 240 epochs from 2"
    monkeypatch.setattr(cifar, "EPOCHS", 2)
    assert cifar.whole_recipe(scale, 0.0, num_students=1)["how"] == "run"


def test_steps_are_timed_in_all_four_ways(scale: Scale) -> None:
    found = cifar.step_times(scale, 1.0, peak_tflops=1.0)
    ways = [name for name in found if name.startswith("graph_")]
    assert len(ways) == 4
    assert all(found[name]["ms_per_step"] > 0 for name in ways)
    assert found["share_of_bf16_matmul_peak"] == pytest.approx(found["student_tflops"], abs=1e-3)


def test_the_imagenet_step_and_the_peaks_are_measured(scale: Scale) -> None:
    found = imagenet.imagenet_step(replace(scale, imagenet_steps=2), compiled=False, seconds=0.0)
    assert found["images_per_second"] > 0
    assert found["batch_norms_folded"] == 20
    assert machine.peak(scale, 1.0)["bf16_matmul_tflops"] > 0


def test_a_step_that_outlasts_its_time_is_noted(scale: Scale) -> None:
    assert imagenet.both(scale, 0.01, is_quick=True, peak_tflops=None)["compiled"]["error"].startswith("not done after")


def test_carried_packages_are_pinned_as_the_lock_file_has_them() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    pins = carry.pinned(lock)
    assert [pin.partition("==")[0] for pin in pins] == list(carry.PACKAGES)
    assert all(re.search(rf"^{re.escape(pin)} ", lock, flags=re.MULTILINE) for pin in pins)
    words = carry.command(pins, Path("site"))
    assert words[words.index("--python-version") + 1] == "3.12"
    assert words[words.index("--target") + 1] == "site"


def test_carried_packages_are_used_by_the_python_that_they_are_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(carry, "SITE", tmp_path / "site")
    assert carry.use_carried() == "nothing carried"
    (tmp_path / "site").mkdir()
    monkeypatch.setattr(carry, "PYTHON", (2, 7))
    assert "for Python (2, 7)" in carry.use_carried()
    assert str(tmp_path / "site") not in sys.path
    monkeypatch.setattr(carry, "PYTHON", sys.version_info[:2])
    assert carry.use_carried() == "carried packages are used"
    assert sys.path[0] == str(tmp_path / "site")
