"""How fast and how exactly each back-end and precision asks a teacher: images per second, largest logit difference.

    python -m benchmarks.teacher [--name resnet32x4] [--seconds 60] [--folder models/teacher]

Ways take turns in one process; the least time of a batch counts. Without --folder the weights are fresh and batch
statistics those of random images, which leaves logits of a trained network's size: speeds are right, differences are
those of such a network. Prints a table and one line of JSON; writes results/teacher.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.training import machine, network
from compress.artifact import load_model
from compress.device import place
from compress.errors import CompressError
from compress.models.cifar import CifarName
from compress.teacher_pass import Backend, ResolvedPrecision, TeacherPass
from compress.teacher_runtime import PassSettings, prepare_teacher, runtimes
from compress.tensors import as_float_images

BATCH_SIZES = (64, 256)
WAYS: tuple[tuple[Backend, ResolvedPrecision], ...] = (
    ("torch", "float32"),
    ("torch", "bfloat16"),
    ("onnxruntime", "float32"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
)
LOGIT_SPREAD = 3.0
"""Standard deviation of a trained CIFAR-100 teacher's logits."""
RESULTS = Path(__file__).parent / "results" / "teacher.json"


def calibrated(name: CifarName) -> nn.Module:
    """A fresh network whose batch statistics are those of its images, its logits as far apart as a trained one's."""
    fresh = place(network(name), torch.device("cpu"))
    images = pictures(64, seed=1)
    fresh.train()
    for module in fresh.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over what it sees
            module.reset_running_stats()
    with torch.no_grad():
        fresh(images)
        last = [module for module in fresh.modules() if isinstance(module, nn.Linear)][-1]
        last.weight.mul_(LOGIT_SPREAD / float(fresh.eval()(images).std()))
    return fresh


def pictures(number: int, *, seed: int) -> torch.Tensor:
    """Random pictures with structure at every scale, as networks take them."""
    random = np.random.default_rng(seed)
    pixels = sum(
        np.kron(random.uniform(0, 64, (number, 32 // size, 32 // size, 3)), np.ones((1, size, size, 1)))
        for size in (1, 4, 8, 16)
    )
    return as_float_images(torch.from_numpy(np.asarray(pixels).astype(np.uint8)), torch.device("cpu"))


def ready(teacher: nn.Module, images: torch.Tensor) -> tuple[list[TeacherPass], list[str]]:
    """All ways that there are here, and why others are not."""
    found: list[TeacherPass] = []
    absent: list[str] = []
    for backend, precision in WAYS:
        settings = PassSettings(backend=backend, precision=precision)
        try:
            asked = prepare_teacher(teacher, images, settings, threads=torch.get_num_threads())
        except CompressError as error:
            absent.append(f"{backend} {precision}: {error}")
            continue
        if asked.backend == backend:
            found.append(asked)
        else:
            absent.append(f"{backend} {precision}: {asked.remark}")
    return found, absent


def least_seconds(ways: list[TeacherPass], images: torch.Tensor, *, seconds: float) -> list[float]:
    """Of one batch, by way; all take turns until the time is over, three times at least."""
    for way in ways:
        way(images)
    least, deadline, num_rounds = [float("inf")] * len(ways), time.monotonic() + seconds, 0
    while num_rounds < 3 or time.monotonic() < deadline:
        for place_, way in enumerate(ways):
            started = time.perf_counter()
            way(images)
            least[place_] = min(least[place_], time.perf_counter() - started)
        num_rounds += 1
    return least


def rows_of(teacher: nn.Module, *, seconds: float) -> tuple[list[dict[str, Any]], list[str]]:
    """What was measured of each way."""
    images = pictures(max(BATCH_SIZES), seed=2)
    ways, absent = ready(teacher, images)
    exact = torch.cat([ways[0](some) for some in images.split(64)])
    rows: list[dict[str, Any]] = []
    for way in ways:
        given = torch.cat([way(some) for some in images.split(64)])
        same = float((given.argmax(dim=1) == exact.argmax(dim=1)).float().mean())
        rows.append(
            {"backend": way.backend, "precision": way.precision, "largest_difference": way.error, "same_class": same}
        )
    for size in BATCH_SIZES:
        taken = least_seconds(ways, images[:size], seconds=seconds / len(BATCH_SIZES))
        for row, of_batch in zip(rows, taken, strict=True):
            row[f"images_per_second_{size}"] = round(size / of_batch, 1)
            row[f"ratio_{size}"] = round(taken[0] / of_batch, 2)
    return rows, absent


def main() -> None:
    """Run everything, print it, keep it."""
    parser = argparse.ArgumentParser(description="How fast and how exactly a teacher is asked.")
    parser.add_argument("--name", default="resnet32x4", help="a CIFAR network")
    parser.add_argument("--folder", type=Path, help="a trained teacher's folder, instead of fresh weights")
    parser.add_argument("--seconds", type=float, default=60.0, help="of measuring")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    trained = arguments.folder is not None
    teacher = place(load_model(arguments.folder)[0], torch.device("cpu")) if trained else calibrated(arguments.name)
    rows, absent = rows_of(teacher, seconds=arguments.seconds)
    print(
        f"{'back-end':12} {'precision':10} {'img/s at 64':>12} {'ratio':>6} {'at 256':>8} {'ratio':>6} {'largest':>9}"
    )
    for row in rows:
        print(
            f"{row['backend']:12} {row['precision']:10} {row['images_per_second_64']:12} {row['ratio_64']:6} "
            f"{row['images_per_second_256']:8} {row['ratio_256']:6} {row['largest_difference']:9.2g}"
        )
    for line in absent:
        print(f"not measured: {line}")
    result = {
        "teacher": str(arguments.folder) if trained else arguments.name,
        "trained": trained,
        "rows": rows,
        "runtimes": list(runtimes()),
        "machine": machine(),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
