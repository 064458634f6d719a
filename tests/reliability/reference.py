"""A small project under real DVC, its state before each stage, and what it leaves when nobody kills it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.pipelines.dvc_repository import environment, make_repository, run
from tests.pipelines.project import write_params
from tests.reliability.outcome import outcome

HOOK = Path(__file__).parent / "hook"
STAGES = (
    "prepare",
    "prepare_names",
    "teacher",
    "teacher_logits",
    "distill@with_nkd",
    "export_teacher",
    "export@with_nkd",
    "evaluate_teacher",
    "evaluate@with_nkd",
    "select",
)
TRAIN = {"epochs": 12, "batch_size": 16, "ema_decay": 0.9, "precision": "float32", "threads": 1}


def kill_params() -> dict[str, Any]:
    """Every kind of stage once; the training has momentum, a moving average and a schedule to lose."""
    small = {"source": "cnn", "channels": [4, 4]}
    rounding = {"epochs": 3, "num_calibration_images": 8}
    student = {"model": small, "method": {"name": "nkd"}, "train": TRAIN, "quantization_aware": rounding}
    return {
        "data": {"source": {"name": "image_folder", "path": "pictures"}, "validation_fraction": 0.2},
        "views": {"augmentation": {"name": "pad_crop_flip", "pad": 1}, "views_per_image": 4},
        "teacher": {"model": {"source": "cnn", "channels": [8, 8]}, "train": TRAIN},
        "teacher_logits": {"dtype": "float16", "threads": 1, "batch_size": 8, "rows_per_chunk": 16},
        "students": {"distilled": {"with_nkd": student | {"seeds": [0, 1]}}},
        "export": {"num_parity_images": 8, "forms": {"candidates": [], "min_seconds": 0.05, "threads": 1}},
        "evaluate": {"threads": 1, "benchmark": {"min_seconds": 0.05, "min_rounds": 3}},
        "select": {"max_size_mb": 1.0},
    }


@dataclass(frozen=True)
class Measured:
    """One stage of the reference run."""

    stage: str
    before: Path
    """The project as it was when the stage began."""
    seconds: float
    """From starting DVC to its end."""
    operations: dict[str, int]
    """File operations of the `stage` process and of `dvc`."""


@dataclass(frozen=True)
class Reference:
    """A run that nobody killed."""

    stages: tuple[Measured, ...]
    outcome: dict[str, str]


def kill_environment(root: Path, **order: Any) -> dict[str, str]:
    """The environment of a run that is watched, and killed where the order says so."""
    paths = os.pathsep.join([str(HOOK), environment().get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {**environment(), "PYTHONPATH": paths, "KILL_TEST": json.dumps({"root": str(root), **order})}


def make_reference(folder: Path, stages: tuple[str, ...] = STAGES) -> Reference:
    """Run the stages one after the other, keeping the project's state before each of `stages`."""
    root = make_repository(folder / "reference", kill_params())
    write_params(root, kill_params())
    run(root, "python", "-m", "compileall", "-q", "compress", "pipelines")
    measured: list[Measured] = []
    for stage in STAGES:
        before = folder / "before" / re.sub(r"\W", "_", stage)
        if stage in stages:
            copy_project(root, before)
        counts = folder / f"counts_{len(measured)}"
        started = time.monotonic()
        done = subprocess.run(
            ["dvc", "repro", "-s", stage], cwd=root, capture_output=True, text=True, check=False,
            env=kill_environment(root, counts=str(counts)),
        )  # fmt: skip
        seconds = time.monotonic() - started
        assert done.returncode == 0, done.stdout + done.stderr
        operations: dict[str, int] = {}
        for line in counts.read_text().splitlines():
            operations |= json.loads(line)
        measured.append(Measured(stage, before, seconds, operations))
    return Reference(tuple(each for each in measured if each.stage in stages), outcome(root))


def copy_project(source: Path, target: Path) -> Path:
    """A copy with times of change, by which DVC knows files that it has hashed before."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target, symlinks=True)
    return target
