"""Kill a pipeline at random moments and compare what it leaves in the end with a run that nobody killed.

    python -m tests.reliability.kill_test --points 50 --seed 0

Each point goes on from the reference run's state before one stage: that stage is started by `dvc repro -s`, killed
with SIGKILL, and `compress recover` and `dvc repro` then finish the pipeline. A moment is a time since the start, or
the n-th file operation of the stage or of DVC itself. After half of the kills of all processes the disk is left as a
power cut would: files under `.work` that were not synced lose their second half.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.pipelines.dvc_repository import environment
from tests.reliability.outcome import differences, outcome
from tests.reliability.reference import STAGES, Measured, Reference, copy_project, kill_environment, make_reference

LONGEST_SECONDS = 300.0


@dataclass(frozen=True)
class Point:
    """A moment to kill at."""

    number: int
    stage: str
    process: str
    """Whose file operations are counted, `stage` or `dvc`; for a moment in time whom it kills."""
    operation: int | None
    """The n-th file operation of the process; None for a moment in time."""
    seconds: float
    """After the start; or, with an operation, after it."""
    whom: str
    """`stage`, `dvc` or `both`."""
    power_cut: bool

    def describe(self) -> str:
        """The moment in words."""
        if self.operation is None:
            return f"after {self.seconds:.2f} s"
        return f"{self.process} operation {self.operation} + {1000 * self.seconds:.0f} ms"


@dataclass(frozen=True)
class Verdict:
    """What became of one point."""

    point: Point
    landed: bool
    """Whether anything was still running when the kill came."""
    repeated: str
    """Epochs that were done twice, where a training was killed."""
    problem: str
    """Empty: everything is equal."""


def draw_points(reference: Reference, count: int, seed: int) -> list[Point]:
    """Points over all stages in turn, each at a random moment."""
    chance = random.Random(seed)
    points: list[Point] = []
    for number in range(count):
        measured = reference.stages[number % len(reference.stages)]
        points.append(_draw(measured, number, chance))
    return points


def _draw(measured: Measured, number: int, chance: random.Random) -> Point:
    whom = chance.choice(("stage", "dvc", "both"))
    power_cut = whom == "both" and chance.random() < 0.5
    if chance.random() < 0.3:
        seconds = chance.uniform(0.0, 1.05 * measured.seconds)
        return Point(number, measured.stage, whom, None, seconds, whom, power_cut)
    process = chance.choice(("stage", "dvc")) if whom == "both" else whom
    operation = chance.randint(1, measured.operations[process])
    delay = chance.choice((0.0, 0.0, 0.0005, 0.002, 0.01, 0.05))
    return Point(number, measured.stage, process, operation, delay, whom, power_cut)


def try_point(reference: Reference, point: Point, folder: Path) -> Verdict:
    """Kill at the point, go on to the end, compare."""
    measured = next(each for each in reference.stages if each.stage == point.stage)
    root = copy_project(measured.before, folder / f"point_{point.number}")
    try:
        landed, printed = _killed(root, point)
        if point.power_cut:
            _cut_power(root)
        problem, resumed = _finish(root)
        if not problem:
            other = differences(reference.outcome, outcome(root))
            problem = f"differs: {', '.join(other[:3])}" + (f" and {len(other) - 3} more" if len(other) > 3 else "")
            problem = problem if other else ""
        repeated = _repeated(printed, resumed)
        if not problem and repeated and max(map(int, repeated.split("+"))) > 1:
            problem = f"{repeated} epochs were repeated"
        return Verdict(point, landed, repeated, problem)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _killed(root: Path, point: Point) -> tuple[bool, str]:
    """Start the stage and kill it; whether the kill came in time, and what was printed until then."""
    order = {} if point.operation is None else {"process": point.process, "operation": point.operation}
    watched = kill_environment(root, **order, whom=point.whom, delay=point.seconds, safe=str(root / ".safe"))
    with (root / ".printed").open("w+") as log:
        process = subprocess.Popen(
            ["dvc", "repro", "-s", point.stage],
            cwd=root, env=watched, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        landed = True
        if point.operation is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(point.seconds)
            landed = process.poll() is None
            _kill(process, point.whom)
        code = process.wait(LONGEST_SECONDS)
        _wait_until_gone(process.pid)
        log.seek(0)
        return landed and code != 0, log.read()


def _kill(process: subprocess.Popen[bytes], whom: str) -> None:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    with contextlib.suppress(OSError):
        stages = [int(each) for each in children.read_text().split()]
        for child in stages if whom == "stage" else ():
            os.kill(child, signal.SIGKILL)
        if whom == "dvc":
            process.kill()
        elif whom == "both" or not stages:
            os.killpg(process.pid, signal.SIGKILL)


def _wait_until_gone(group: int) -> None:
    """A stage dies soon after its DVC; until then it would still be writing."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    raise AssertionError("the stage outlived DVC")


def _cut_power(root: Path) -> None:
    """Take from files of unfinished work what was never synced."""
    safe_file = root / ".safe"
    lines = safe_file.read_text().splitlines() if safe_file.is_file() else []
    safe = {tuple(json.loads(line)) for line in lines}
    for path in (root / ".work").rglob("*"):
        if path.is_file() and (path.stat().st_ino, path.stat().st_mtime_ns) not in safe:
            os.truncate(path, path.stat().st_size // 2)


def _finish(root: Path) -> tuple[str, str]:
    """Go on as a person would; what went wrong, and what was printed."""
    for name in (".safe", ".printed"):
        (root / name).unlink(missing_ok=True)
    printed = ""
    for command in (["python", "-m", "pipelines", "recover"], ["dvc", "repro"]):
        done = subprocess.run(
            command, cwd=root, env=environment(), capture_output=True, text=True, check=False, timeout=LONGEST_SECONDS
        )
        printed += done.stdout
        if done.returncode != 0:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            return f"{' '.join(command)}: {' '.join(last)}", printed
    return "", printed


def _repeated(before: str, after: str) -> str:
    """Epochs that each killed training did twice: finished ones were printed, the next run says where it goes on."""
    done: dict[str, int] = {}
    for label, epoch in re.findall(r"^(\w+(?: seed \d+)?): epoch (\d+)/", before, re.MULTILINE):
        done[label] = int(epoch)
    again: list[str] = []
    for label, epoch in done.items():
        goes_on = re.search(rf"^{label}: continuing after epoch (\d+)/", after, re.MULTILINE)
        trains_again = re.search(rf"^{label}: (epoch|continuing) ", after, re.MULTILINE)
        if trains_again:
            again.append(str(max(epoch - (int(goes_on[1]) if goes_on else 0), 0)))
    return "+".join(again)


def table(verdicts: list[Verdict]) -> str:
    """One line for each point."""
    rows = [("point", "stage", "killed", "moment", "disk", "epochs repeated", "equal")]
    for verdict in verdicts:
        point = verdict.point
        killed = "DVC and stage" if point.whom == "both" else "DVC" if point.whom == "dvc" else point.whom
        moment = point.describe() + ("" if verdict.landed else " (had ended)")
        disk = "power cut" if point.power_cut else "kept"
        equal = "yes" if not verdict.problem else f"NO: {verdict.problem}"
        rows.append((str(point.number), point.stage, killed, moment, disk, verdict.repeated or "-", equal))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = [[*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]] for row in rows]
    return "\n".join("  ".join(line) for line in lines)


def main() -> int:
    """Run the test; 1 if any point came out differently."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--jobs", type=int, default=1, help="points tried at the same time")
    parser.add_argument("--stages", nargs="*", default=STAGES, choices=STAGES, help="stages to kill; all by default")
    parser.add_argument("--only", type=int, nargs="*", help="try these points alone, to look at one again")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill_test_") as name:
        folder, started = Path(name).resolve(), time.monotonic()
        reference = make_reference(folder, tuple(chosen.stages))
        seconds = sum(each.seconds for each in reference.stages)
        print(f"seed {chosen.seed}; reference run {seconds:.0f} s, {len(reference.outcome)} files compared", flush=True)
        points = draw_points(reference, chosen.points, chosen.seed)
        points = [point for point in points if chosen.only is None or point.number in chosen.only]
        verdicts: list[Verdict] = []
        with ThreadPoolExecutor(chosen.jobs) as pool:
            for verdict in pool.map(lambda point: try_point(reference, point, folder), points):
                verdicts.append(verdict)
                print(table([verdict]).splitlines()[1], flush=True)
    num_bad = sum(bool(verdict.problem) for verdict in verdicts)
    print(
        f"\n{table(verdicts)}\n\n{len(verdicts) - num_bad} of {len(verdicts)} equal, {time.monotonic() - started:.0f} s"
    )
    return int(num_bad > 0)


if __name__ == "__main__":
    sys.exit(main())
