"""Command distill --all: every student that is not up to date, in one process or in several."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from compress.data.prepared import load_prepared
from compress.device import resolve_device
from compress.errors import ParamsError, TrainingError
from compress.ranks import ALONE, Ranks, agreed
from pipelines.layout import Layout
from pipelines.params import load_params
from pipelines.plans import DistillParams, Plan, Teachers, check_rounding, is_finished, plan_of, tracked_plan
from pipelines.process import STARTED_BY_US
from pipelines.torchrun import ranks_of_stage
from pipelines.training import Lesson, train_side_by_side

TAKE_OVER = "the stages take over from here: dvc repro"


class Part(NamedTuple):
    """One of several processes that divide the students among themselves."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """From `2/3`.

        Raises:
            ValueError: it is no such part.
        """
        number, of = (int(each) for each in text.split("/"))
        if not 1 <= number <= of:
            raise ValueError(f"{text} is no part")
        return cls(number, of)


WHOLE = Part()


def run_all(root: Path, *, part: Part = WHOLE) -> None:
    """Train all students that are not up to date side by side, to checkpoints from which their stages finish at once.

    Students of one seed share batches and a live teacher; stored answers are shared by all. Students that other
    students teach need those first: their own stages train them. Of several parts each trains other students.

    Raises:
        ParamsError: several processes train on a CPU, and a row does not say with how many threads.
    """
    with ranks_of_stage() as ranks:
        _run_all(root, ranks, part)


def run_jobs(root: Path, number: int) -> None:
    """The same in so many processes at once, for CPUs with more cores than a small network can use.

    Raises:
        TrainingError: a process failed; the others have finished.
    """
    processes = [_start(root, Part(each, number)) for each in range(1, number + 1)]
    try:
        codes = [process.wait() for process in processes]
    finally:  # after Ctrl-C too
        for process in processes:
            process.terminate()
            process.wait()
    failed = sum(code != 0 for code in codes)
    if failed:
        raise TrainingError(
            f"{failed} of {number} processes failed, as said above; run the same command again to go on"
        )
    print(TAKE_OVER)


def _start(root: Path, part: Part) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipelines", "distill", "--all", "--part", f"{part.number}/{part.of}"]
    # The code that runs here, wherever the project's folder is.
    found = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(command, cwd=root, env={**os.environ, STARTED_BY_US: "1", "PYTHONPATH": found})


def _run_all(root: Path, ranks: Ranks, part: Part) -> None:
    layout = Layout(root)
    params = load_params(DistillParams, layout.params)
    data = load_prepared(layout.prepared)
    teachers = Teachers(params, data, layout)
    names = [name for name in params.students.rows if name not in params.students.self_taught]
    plans = [plan_of(name, params, data, teachers) for name in names]
    outdated = agreed([plan.name for plan in plans if not is_finished(plan, layout)])
    pending = [plan for plan in plans if plan.name in outdated][part.number - 1 :: part.of]
    if ranks != ALONE or part != WHOLE:
        _require_threads(pending)
    print(f"{len(pending)} of {len(names)} students to train: {', '.join(plan.name for plan in pending) or 'none'}")
    for plan in pending if ranks == ALONE else ():
        check_rounding(plan, ranks)
    with ExitStack() as stack:
        tracked = {plan.name: stack.enter_context(tracked_plan(root, plan, params.views)) for plan in pending}
        train_side_by_side([Lesson(job, plan.work, tracked[plan.name]) for plan in pending for job in plan.jobs])
        if ranks == ALONE:  # otherwise their stages do it
            train_side_by_side(
                [Lesson(job, plan.work, tracked[plan.name]) for plan in pending for job in plan.roundings]
            )
    if part == WHOLE:
        print(TAKE_OVER)


def _require_threads(plans: Sequence[Plan]) -> None:
    """Raise ParamsError if the stages would not find these checkpoints: one process of several has fewer threads."""
    for settings, name in ((job.settings, plan.name) for plan in plans for job in plan.jobs):
        if settings.threads is None and resolve_device(settings.device).type == "cpu":
            raise ParamsError(
                f"{name}: where several processes train on a CPU the row has to say how many threads each takes, or "
                "dvc repro would use as many as there are cores and train again; set train.threads: 1"
            )
