"""How fast students train, beside a conventional loop and beside the machine's limit.

    make bench          # or: python -m benchmarks.training [--seconds 400]

Variants take turns in one process, so whatever else the machine does hits all of them; ratios are medians over rounds.
Images are random bytes and the weights are fresh: neither changes what a step costs. Written to results/latest.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.conventional import ConventionalLoop
from benchmarks.peak import convolution_peak
from benchmarks.step_parts import parts_of_a_step
from compress.batches import TrainingData
from compress.data.prepared import ArraySplit
from compress.data.view_schedule import ViewSettings
from compress.data.views import PadCropFlip
from compress.methods import WTTM
from compress.models import Cifar, Statistics, build_network, count_flops
from compress.models.cifar import CifarName
from compress.teacher_logits import StoredTeacher
from compress.train import EpochReport, Trainee, TrainingState, TrainSettings, new_training_state, train_together

NUM_CLASSES, NUM_VIEWS = 100, 8
STATISTICS = Statistics(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))
PAIRS: tuple[tuple[CifarName, CifarName], ...] = (("resnet32x4", "resnet8x4"), ("resnet56", "resnet20"))
STEPS = {64: 8, 256: 3}
"""Steps in one turn, by batch size."""
RESULTS = Path(__file__).parent / "results" / "latest.json"

Turn = Callable[[], float]
"""Trains for one turn and returns the seconds it took."""


def network(name: CifarName, seed: int = 0) -> nn.Module:
    """A fresh network of the literature."""
    torch.manual_seed(seed)
    return build_network(Cifar(name=name), num_classes=NUM_CLASSES, image_size=(32, 32), statistics=STATISTICS)


def training_data(num_images: int) -> TrainingData:
    """Random images with random labels, every class among them."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (num_images, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(num_images, dtype=np.int64) % NUM_CLASSES
    labels[-1] = NUM_CLASSES - 1
    views = ViewSettings(augmentation=PadCropFlip(), views_per_image=NUM_VIEWS)
    return TrainingData(ArraySplit(pixels, labels), ArraySplit(pixels[:2], labels[:2]), views)


def conventional(student: CifarName, teacher: CifarName, data: TrainingData, batch_size: int) -> Turn:
    """The loop to compare with."""
    images = data.train.images(np.arange(len(data.train), dtype=np.int64)).numpy()
    loop = ConventionalLoop(network(student), network(teacher), images, data.train.labels, batch_size=batch_size)
    return loop.epoch


def ours(student: CifarName, data: TrainingData, batch_size: int, *, precision: Any, num_students: int = 1) -> Turn:
    """Our training with stored answers: one epoch of one or several students in a turn."""
    settings = TrainSettings(epochs=10_000, batch_size=batch_size, precision=precision)
    shape = (NUM_VIEWS, len(data.train), NUM_CLASSES)
    answers = StoredTeacher(np.random.default_rng(1).standard_normal(shape).astype(np.float16))
    trainees = [
        Trainee(
            new_training_state(
                network(student, seed), WTTM(gamma=0.1, beta=3.0), data, settings=settings, teacher=answers
            ),
            settings,
        )
        for seed in range(num_students)
    ]
    reports = train_together(trainees, data, seed=0)

    def turn() -> float:
        started = time.perf_counter()
        for number, report in reports:
            if isinstance(report, EpochReport) and number == num_students - 1:
                break
        return time.perf_counter() - started

    return turn


def measure(turns: dict[str, Turn], *, seconds: float) -> dict[str, list[float]]:
    """Seconds of every turn, the variants in turns until the time is over; the first round is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in turns}
    for turn in turns.values():
        turn()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline or len(next(iter(taken.values()))) < 3:
        for name, turn in turns.items():
            taken[name].append(turn())
    return taken


def ratio(taken: dict[str, list[float]], name: str, *, num_students: int = 1) -> float:
    """How many times faster than the conventional loop per student: median over rounds."""
    pairs = zip(taken["conventional"], taken[name], strict=True)
    return statistics.median(num_students * slow / fast for slow, fast in pairs)


def compare(pair: tuple[CifarName, CifarName], batch_size: int, *, seconds: float) -> dict[str, Any]:
    """One pair of networks at one batch size."""
    teacher, student = pair
    data = training_data(STEPS[batch_size] * batch_size)
    turns = {
        "conventional": conventional(student, teacher, data, batch_size),
        "one_student_fp32": ours(student, data, batch_size, precision="float32"),
        "one_student_bf16": ours(student, data, batch_size, precision="bfloat16"),
        "six_students_bf16": ours(student, data, batch_size, precision="bfloat16", num_students=6),
    }
    if batch_size != 64:
        del turns["six_students_bf16"]
    taken = measure(turns, seconds=seconds)
    images = len(data.train)
    result: dict[str, Any] = {"pair": f"{teacher} -> {student}", "batch_size": batch_size}
    result["rounds"] = len(taken["conventional"])
    for name, values in taken.items():
        num_students = 6 if name.startswith("six") else 1
        result[name] = {
            "images_per_second": round(num_students * images / statistics.median(values), 1),
            "ms_per_step_and_student": round(1000 * statistics.median(values) / STEPS[batch_size] / num_students, 2),
            "ratio": round(ratio(taken, name, num_students=num_students), 3),
        }
    return result


def main() -> None:
    """Run everything, print it, keep it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=100.0, help="of measuring for each pair and batch size")
    seconds = parser.parse_args().seconds
    device = torch.device("cpu")
    peak = {
        name: convolution_peak(dtype, device) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    comparisons = [
        compare(PAIRS[0], 64, seconds=seconds),
        compare(PAIRS[0], 256, seconds=seconds),
        compare(PAIRS[1], 64, seconds=seconds / 2),
    ]
    for comparison in comparisons:
        print(json.dumps(comparison), flush=True)
    small, large, _ = comparisons
    student = network(PAIRS[0][1])
    flops_per_image = 3 * count_flops(student, (32, 32))  # the backward pass computes two products for each one
    state, data = _one_student(64)
    result = {
        "one_student_bf16_ratio": small["one_student_bf16"]["ratio"],
        "one_student_fp32_ratio": small["one_student_fp32"]["ratio"],
        "six_students_bf16_ratio": small["six_students_bf16"]["ratio"],
        "batch256_bf16_ratio": large["one_student_bf16"]["ratio"],
        "images_per_second": small["one_student_bf16"]["images_per_second"],
        "share_of_peak": round(small["one_student_bf16"]["images_per_second"] * flops_per_image / peak["bf16"], 3),
        "peak_gflops": {name: round(value / 1e9) for name, value in peak.items()},
        "step": parts_of_a_step(state, data),
        "comparisons": comparisons,
        "machine": machine(),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def _one_student(batch_size: int) -> tuple[Trainee, TrainingData]:
    data = training_data(STEPS[batch_size] * batch_size)
    settings = TrainSettings(epochs=10_000, batch_size=batch_size, precision="bfloat16")
    shape = (NUM_VIEWS, len(data.train), NUM_CLASSES)
    answers = StoredTeacher(np.random.default_rng(1).standard_normal(shape).astype(np.float16))
    state: TrainingState = new_training_state(
        network(PAIRS[0][1]), WTTM(gamma=0.1, beta=3.0), data, settings=settings, teacher=answers
    )
    return Trainee(state, settings), data


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
