"""How much of a training step is spent inside oneDNN's kernels, by oneDNN's own clock: the part that is not ours.

    python -m benchmarks.kernels            # a minute on two cores; prints one JSON object

resnet8x4 in bfloat16 with random images. oneDNN reports each kernel on standard output, so the steps run in a process
of their own whose output is read.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from typing import NamedTuple

KERNEL = re.compile(r"^onednn_verbose,.*,exec,cpu,(\w+),[^,]*,(\w+),.*,([\d.]+)$")
STEP = re.compile(r"^step ([\d.]+) ms$")
BATCH_SIZES = (64, 256)
WARM_UP = 3


def main() -> None:
    """Measure every batch size and print what was found."""
    found = {str(batch_size): measure(batch_size) for batch_size in BATCH_SIZES}
    for batch_size, row in found.items():
        parts = ", ".join(f"{name} {ms:.1f}" for name, ms in row.kernels_ms.items())
        print(f"batch {batch_size}: {row.step_ms:.1f} ms a step, in kernels {row.in_kernels_ms:.1f} ms ({parts})")
    print(json.dumps({batch_size: row._asdict() for batch_size, row in found.items()}))


class Row(NamedTuple):
    """Medians over steps."""

    num_steps: int
    step_ms: float
    in_kernels_ms: float
    kernels_ms: dict[str, float]
    """By what they do."""


def measure(batch_size: int) -> Row:
    """Medians over the steps of one process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kernels", str(batch_size)],
        env={**os.environ, "ONEDNN_VERBOSE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    steps = parse(done.stdout)[WARM_UP:]
    kinds = sorted({kind for _, kernels in steps for kind in kernels})
    kernels = {kind: statistics.median(kernels.get(kind, 0.0) for _, kernels in steps) for kind in kinds}
    return Row(
        num_steps=len(steps),
        step_ms=statistics.median(ms for ms, _ in steps),
        in_kernels_ms=round(statistics.median(sum(inside.values()) for _, inside in steps), 2),
        kernels_ms={kind: round(ms, 2) for kind, ms in kernels.items()},
    )


def parse(output: str) -> list[tuple[float, dict[str, float]]]:
    """Milliseconds of each step, and of its kernels by what they do."""
    steps: list[tuple[float, dict[str, float]]] = []
    kernels: dict[str, float] = defaultdict(float)
    for line in output.splitlines():
        if kernel := KERNEL.match(line):
            kind, direction, ms = kernel.groups()
            kernels[f"convolution {direction}" if kind == "convolution" else kind] += float(ms)
        elif step := STEP.match(line):
            steps.append((float(step[1]), dict(kernels)))
            kernels.clear()
    return steps


def train(batch_size: int, num_steps: int) -> None:
    """The steps that are looked at."""
    import time
    from typing import Any

    import torch
    from torch.nn import functional as F

    from benchmarks.training import network
    from compress.device import keep_freed_memory, place
    from compress.optimization import SGD

    keep_freed_memory()
    student: Any = place(network("resnet8x4"), torch.device("cpu"))
    optimizer = SGD().build(student)
    images = torch.rand(batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 100, (batch_size,))
    for _ in range(num_steps):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            logits = student(images)
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        print(f"step {1000 * (time.perf_counter() - started):.3f} ms", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        train(int(sys.argv[1]), num_steps=4 + 1024 // int(sys.argv[1]))
