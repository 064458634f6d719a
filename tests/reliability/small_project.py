"""A finished project in which every stage has run within this process, and the stages by the files that they read."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress.errors import CompressError
from compress.verify import verify_deploy
from pipelines import distill, evaluate, export, prepare, report, select, teacher, teacher_logits
from pipelines.failures import one_line
from tests.pipelines.project import write_images, write_params
from tests.reliability.reference import kill_params

STUDENT = "with_nkd"
Stage = Callable[[Path], Any]

PIPELINE: dict[str, Stage] = {
    "prepare": prepare.run,
    "teacher": teacher.run,
    "teacher_logits": teacher_logits.run,
    "distill": lambda root: distill.run(root, STUDENT),
    "export teacher": lambda root: export.run(root, "teacher"),
    "export": lambda root: export.run(root, STUDENT),
    "evaluate teacher": lambda root: evaluate.run(root, "teacher"),
    "evaluate": lambda root: evaluate.run(root, STUDENT),
    "select": select.run,
}
"""All stages in their order."""

READERS: dict[str, str] = {
    "data/prepared": "teacher",
    "data/teacher_logits": "distill",
    "models/teacher": "teacher_logits",
    f"models/{STUDENT}": "export",
    "results/teacher/training.json": "export teacher",
    "results/teacher/run.json": "evaluate teacher",
    "results/teacher/history.csv": "select",
    "results/teacher": "evaluate",
    f"results/{STUDENT}/training.json": "export",
    f"results/{STUDENT}/run.json": "evaluate",
    f"results/{STUDENT}": "select",
    "exports/teacher": "evaluate teacher",
    f"exports/{STUDENT}": "evaluate",
    f"exports/{STUDENT}/forms.json": "select",
    "metrics/students.json": "report",
    "deploy": "verify",
}
"""The first stage that reads a file, by the longest beginning of its name."""

UNREAD = ("metrics/champion.json", "exports/teacher/forms.json", "/best/", "reports/", "split.files.csv")
"""Files for people and for `dvc metrics`; and weights of the best epoch, where export takes the last ones."""


def params() -> dict[str, Any]:
    """One epoch, one seed and no rounding: these tests look at files, not at numbers."""
    values = kill_params()
    del values["students"]["distilled"][STUDENT]["quantization_aware"]
    del values["export"]["forms"]
    short = {**values["teacher"]["train"], "epochs": 1}
    values["teacher"]["train"] = short
    values["students"]["distilled"][STUDENT] |= {"train": short, "seeds": [0]}
    return values


def new_project(root: Path) -> Path:
    """A folder with pictures and params.yaml."""
    root.mkdir(parents=True, exist_ok=True)
    write_images(root / "pictures")
    write_params(root, params())
    return root


def run(root: Path, stage: str) -> None:
    """Run one stage, or one of the commands that read what the last stage left, in the project's folder."""
    before = Path.cwd()
    os.chdir(root)
    try:
        {**PIPELINE, "report": report.run, "verify": lambda here: verify_deploy(here / "deploy")}[stage](root)
    finally:
        os.chdir(before)


def refusal(root: Path, stage: str) -> str | None:
    """The line that a person sees when the stage refuses; None if it does not. Anything else is a traceback."""
    try:
        run(root, stage)
    except (CompressError, OSError) as error:
        return one_line(error)
    return None


def reader_of(name: str) -> str | None:
    """The stage that reads a file first; None if none does."""
    if any(part in name for part in UNREAD):
        return None
    beginnings = [each for each in READERS if name == each or name.startswith(f"{each}/")]
    return READERS[max(beginnings, key=len)]


def is_full(line: str) -> bool:
    """Whether a line is about a disk without room."""
    return os.strerror(errno.ENOSPC) in line or "the disk became full" in line or "make room" in line
