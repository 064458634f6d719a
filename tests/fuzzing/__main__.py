"""All targets one after the other: python -m tests.fuzzing --seconds 60 [TARGET …]. Exit code 1 where one crashed.

What fuzzing finds worth keeping goes to .work/fuzzing/TARGET, what breaks a reader to .work/fuzzing/broken/TARGET; the
next run starts from there. An input that broke something belongs into the corpus, with the repair.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.fuzzing.corpus import CORPUS

WORK = Path(".work/fuzzing")
MEMORY_LIMIT_MB = 1500
"""Of a process; the libraries alone take about 500 MB."""
MAX_BYTES = {"onnx_file": 8192, "params_file": 8192, "inference_request": 8192, "form": 4096, "folder_names": 2048}
LARGEST_INPUT = 32_768
ROW = "{:24} {:>10} {:>9} {:>12} {:>11} {:>9} {:>8}"
HEADER = ("target", "executions", "coverage", "new coverage", "new inputs", "memory MB", "crashes")


class Outcome(NamedTuple):
    """What came out of fuzzing one target."""

    executions: int
    coverage: int
    new_coverage: int
    """Edges that the starting inputs did not reach."""
    new_inputs: int
    memory_mb: int
    """Peak of the process."""
    crashes: int

    def then(self, later: Outcome) -> Outcome:
        """Both together; the later one began where this one ended."""
        return Outcome(
            executions=self.executions + later.executions,
            coverage=max(self.coverage, later.coverage),
            new_coverage=self.new_coverage + later.new_coverage,
            new_inputs=self.new_inputs + later.new_inputs,
            memory_mb=max(self.memory_mb, later.memory_mb),
            crashes=self.crashes + later.crashes,
        )


def fuzz(target: str, *, seconds: int, seed: int, input_seconds: int) -> Outcome:
    """Fuzz one target for that much processor time, in processes of its own, or until it crashes."""
    outcome, used = Outcome(0, 0, 0, 0, 0, 0), 0.0
    while used < seconds and not outcome.crashes:
        before = _cpu_seconds()
        # libFuzzer counts the time on the wall, which passes while others have the processor.
        outcome = outcome.then(
            _run(target, seconds=max(1, int(seconds - used)), seed=seed, input_seconds=input_seconds)
        )
        used += _cpu_seconds() - before
    return outcome


def _run(target: str, *, seconds: int, seed: int, input_seconds: int) -> Outcome:
    found, broken = WORK / target, WORK / "broken" / target
    for folder in (found, broken):
        folder.mkdir(parents=True, exist_ok=True)
    before = len(list(broken.iterdir()))
    command = [
        *(sys.executable, "-m", "tests.fuzzing.one", target, str(found), str(CORPUS / target)),
        *(f"-max_total_time={seconds}", f"-seed={seed}", "-print_final_stats=1", "-reload=0", "-use_value_profile=0"),
        *(f"-rss_limit_mb={MEMORY_LIMIT_MB}", f"-malloc_limit_mb={MEMORY_LIMIT_MB}", f"-timeout={input_seconds}"),
        *(f"-max_len={MAX_BYTES.get(target, LARGEST_INPUT)}", f"-artifact_prefix={broken}/"),
    ]
    log = WORK / f"{target}.log"
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    crashes = max(len(list(broken.iterdir())) - before, int(code != 0))
    if crashes:
        print(f"{target}: exit code {code}; {log} says why, the input is in {broken}", flush=True)
    return _outcome(log.read_text(encoding="utf-8", errors="replace"), crashes)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _outcome(text: str, crashes: int) -> Outcome:
    coverages = [int(number) for number in re.findall(r"^#\d+\s+[A-Za-z]+\s+cov: (\d+)", text, re.M)]
    first, last = (coverages[0], max(coverages)) if coverages else (0, 0)

    def stat(name: str) -> int:
        match = re.search(rf"^stat::{name}:\s+(\d+)", text, re.M)
        return int(match[1]) if match else 0

    return Outcome(
        executions=stat("number_of_executed_units"),
        coverage=last,
        new_coverage=last - first,
        new_inputs=stat("new_units_added"),
        memory_mb=stat("peak_rss_mb"),
        crashes=crashes,
    )


def main() -> int:
    """The command line; 0 where nothing crashed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description="Fuzz every reader of outside bytes.")
    parser.add_argument("targets", nargs="*", help="Names of targets; all of them by default.")
    parser.add_argument("--seconds", type=int, default=300, help="Of processor time, shared evenly by the targets.")
    parser.add_argument("--seed", type=int, default=0, help="Of the random changes; 0 takes a new one each time.")
    parser.add_argument("--input-seconds", type=int, default=10, help="An input that takes longer counts as a crash.")
    arguments = parser.parse_args()
    known = sorted(path.name for path in CORPUS.iterdir())
    targets = arguments.targets or known
    unknown = sorted(set(targets) - set(known))
    if unknown:
        parser.error(f"no target {unknown[0]}; there are {', '.join(known)}")
    print(ROW.format(*HEADER), flush=True)
    crashes = 0
    seconds = max(1, arguments.seconds // len(targets))
    for target in targets:
        outcome = fuzz(target, seconds=seconds, seed=arguments.seed, input_seconds=arguments.input_seconds)
        print(ROW.format(target, *outcome), flush=True)
        crashes += outcome.crashes
    return int(crashes > 0)


if __name__ == "__main__":
    sys.exit(main())
