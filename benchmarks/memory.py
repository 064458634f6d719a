"""How much memory each stage takes: a CIFAR-sized data set, and photographs that stay on disk.

    python -m benchmarks.memory [--images 50000] [--photos 640]

Each stage's library call runs in a process of its own, on synthetic images. Beside the peak of resident memory (VmHWM,
which counts pages of memory-mapped files, and those the kernel takes back when it needs them) stands the peak of
anonymous memory (RssAnon, sampled every 10 ms), which is what a process really needs. Targets: anonymous memory at most
the data set and 2 GB; with photographs on disk at most the model and 2 GB, and as much for four times the photographs.
Prints a table and one line of JSON; writes results/memory.json. Training is a few steps and a validation; a store
is written whole by a small teacher and begun by a large one.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.memory_stages import STAGES, Case, cases, write_pictures

GIGABYTE = 1_000_000_000
ALLOWANCE = 2 * GIGABYTE
RESULTS = Path(__file__).parent / "results" / "memory.json"


class Peaks(NamedTuple):
    """Of one process, in bytes."""

    anonymous: int
    resident: int


def measured(work: Callable[[], None]) -> tuple[Peaks, Peaks]:
    """Peaks before the work, when everything is imported, and with it."""
    highest, done = 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.is_set():
            highest = max(highest, _status("RssAnon"))
            time.sleep(0.01)

    import torch

    torch.ones(2).sum()
    before = Peaks(_status("RssAnon"), _status("VmHWM"))
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return before, Peaks(max(highest, _status("RssAnon")), _status("VmHWM"))


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found.group(1))


def run_child(case: Case, stage: str, folder: Path) -> dict[str, Any]:
    """A stage in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "--child", json.dumps([case, stage, str(folder)])]
    started = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{case.name} {stage} failed:\n{result.stderr}")
    peaks = json.loads(result.stdout.splitlines()[-1])
    return {"case": case.name, "stage": stage, "seconds": round(time.monotonic() - started, 1), **peaks}


def child(text: str) -> None:
    """What the process of one stage does."""
    values, stage, folder = json.loads(text)
    case = Case(*values)
    before, peak = measured(lambda: STAGES[stage](case, Path(folder)))
    print(
        json.dumps(
            {
                "anonymous_mb": round(peak.anonymous / 1e6),
                "resident_mb": round(peak.resident / 1e6),
                "imports_mb": round(before.anonymous / 1e6),
            }
        )
    )


def run_case(case: Case, stages: Iterable[str]) -> list[dict[str, Any]]:
    """All stages on one data set."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(case, folder / "pictures.zip")
        data_set = 0 if case.on_disk else case.num_images * case.image_size**2 * 3
        for stage in stages:
            row = run_child(case, stage, folder)
            row["allowed_mb"] = round((data_set + ALLOWANCE) / 1e6)
            row["holds"] = row["anonymous_mb"] <= row["allowed_mb"]
            rows.append(row)
            print(
                f"{case.name:12} {stage:16} {row['anonymous_mb']:6} MB anonymous  {row['resident_mb']:6} MB resident  "
                f"{row['allowed_mb']:6} MB allowed  {row['seconds']:6.1f} s",
                flush=True,
            )
    return rows


def main() -> None:
    """Run everything, print it, keep it."""
    parser = argparse.ArgumentParser(description="How much memory each stage takes.")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--photos", type=int, default=640)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child)
        return
    rows = [row for case in cases(arguments.images, arguments.photos) for row in run_case(case, STAGES)]
    few, many = (
        max(row["anonymous_mb"] for row in rows if row["case"] == f"photos_{number}")
        for number in (arguments.photos, 4 * arguments.photos)
    )
    result = {
        "largest_arrays_mb": max(row["anonymous_mb"] for row in rows if row["case"] == "arrays"),
        "largest_photos_mb": few,
        "largest_four_times_the_photos_mb": many,
        "all_hold": all(row["holds"] for row in rows),
        "rows": rows,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
