"""How fast students train, beside a conventional loop and beside the machine's limit.

    make bench          # or: python -m benchmarks.training [--seconds 400]

Variants take turns, so whatever else the machine does hits all of them; ratios are medians over rounds. Images are
random bytes and the weights are fresh: neither changes what a step costs. The last line is one JSON object, also
written to results/latest.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from benchmarks.conventional import Apart, ConventionalLoop
from benchmarks.peak import convolution_peak
from benchmarks.step_parts import TimedAnswers, kinds_of_operations, phases_of_a_step
from compress.batches import TrainingData
from compress.data.prepared import ArraySplit
from compress.data.view_schedule import ViewSettings
from compress.data.views import PadCropFlip
from compress.logit_store import read_manifest
from compress.methods import WTTM
from compress.models import Cifar, Network, Statistics, build_network, count_flops
from compress.models.cifar import CifarName
from compress.teacher_logits import TeacherAnswers, TeacherLogitsSettings, open_teacher_logits
from compress.teacher_logits_writer import Question, new_manifest, sample_views, write_teacher_logits
from compress.teacher_pass import prepare_pass
from compress.train import train_together
from compress.training_state import EpochReport, Trainee, TrainSettings, new_training_state
from pipelines.origin import cpu_name

NUM_CLASSES, NUM_VIEWS = 100, 8
STATISTICS = Statistics(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))
PAIRS: tuple[tuple[CifarName, CifarName], ...] = (("resnet32x4", "resnet8x4"), ("resnet56", "resnet20"))
STEPS = {64: 8, 256: 3}
"""Steps in one turn, by batch size."""
RESULTS = Path(__file__).parent / "results" / "latest.json"

Turn = Callable[[], float]
"""Trains for one turn and returns the seconds it took."""


def network(name: CifarName, seed: int = 0) -> Network:
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


class Case(NamedTuple):
    """Data and stored answers at one batch size."""

    data: TrainingData
    answers: TeacherAnswers
    batch_size: int
    store: Path


def case_of(batch_size: int, folder: Path) -> Case:
    """Random images and a store of answers to their views; whose answers they are does not matter to the clock."""
    data = training_data(STEPS[batch_size] * batch_size)
    stand_in = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, NUM_CLASSES))
    asked = prepare_pass(stand_in, sample_views(data.train, data.views, num_samples=8, device=torch.device("cpu")))
    question = Question("t", "d", data.views, num_images=len(data.train), num_classes=NUM_CLASSES)
    manifest = new_manifest(TeacherLogitsSettings(), question, asked)
    for _ in write_teacher_logits(folder, data.train, asked, manifest=manifest):
        pass
    return written_case(batch_size, folder)


def written_case(batch_size: int, store: Path) -> Case:
    """The case of a store that is there already."""
    answers = open_teacher_logits(store, read_manifest(store))
    return Case(training_data(STEPS[batch_size] * batch_size), answers, batch_size, store)


def conventional(student: CifarName, teacher: CifarName, num_images: int, batch_size: int) -> ConventionalLoop:
    """The loop to compare with."""
    train = training_data(num_images).train
    images = train.images(np.arange(num_images, dtype=np.int64)).numpy()
    return ConventionalLoop(network(student), network(teacher), images, train.labels, batch_size=batch_size)


def ours(student: CifarName, case: Case, *, precision: Any, num_students: int = 1, threads: int | None = None) -> Turn:
    """Our training with stored answers: one epoch of one or several students in a turn."""
    reports = train_together(trainees(student, case, precision, num_students, threads), case.data, seed=0)

    def turn() -> float:
        started = time.perf_counter()
        for number, report in reports:
            if isinstance(report, EpochReport) and number == num_students - 1:
                break
        return time.perf_counter() - started

    return turn


class Divided:
    """Students divided among processes of one thread each, as `compress distill --all --jobs` does."""

    def __init__(self, student: CifarName, case: Case, *, num_students: int, num_processes: int) -> None:
        build = partial(_Share, student, case.batch_size, case.store, num_students // num_processes)
        self._processes = [Apart(build) for _ in range(num_processes)]

    def turn(self) -> float:
        """Seconds until the last process has done its epoch."""
        started = time.perf_counter()
        for process in self._processes:
            process.begin()
        for process in self._processes:
            process.end()
        return time.perf_counter() - started

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.close()


class _Share:
    """The students of one process."""

    def __init__(self, student: CifarName, batch_size: int, store: Path, num_students: int) -> None:
        case = written_case(batch_size, store)
        self.epoch = ours(student, case, precision="bfloat16", num_students=num_students, threads=1)


def trainees(
    student: CifarName, case: Case, precision: Any, num_students: int = 1, threads: int | None = None
) -> list[Trainee]:
    """Students that have not begun."""
    settings = TrainSettings(epochs=10_000, batch_size=case.batch_size, precision=precision, threads=threads)
    method = WTTM(gamma=0.1, beta=3.0)
    return [
        Trainee(
            new_training_state(network(student, seed), method, case.data, settings=settings, teacher=case.answers),
            settings,
        )
        for seed in range(num_students)
    ]


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


def compare(pair: tuple[CifarName, CifarName], case: Case, *, seconds: float) -> dict[str, Any]:
    """One pair of networks at one batch size."""
    teacher, student = pair
    loop = Apart(partial(conventional, student, teacher, len(case.data.train), case.batch_size))
    turns = {
        "conventional": loop.epoch,
        "one_student_fp32": ours(student, case, precision="float32"),
        "one_student_bf16": ours(student, case, precision="bfloat16"),
    }
    divided = None
    if case.batch_size == 64:
        turns["six_students_bf16_one_process"] = ours(student, case, precision="bfloat16", num_students=6)
        divided = Divided(student, case, num_students=6, num_processes=2)
        turns["six_students_bf16"] = divided.turn
    taken = measure(turns, seconds=seconds)
    loop.close()
    if divided is not None:
        divided.close()
    return {
        "pair": f"{teacher} -> {student}",
        "batch_size": case.batch_size,
        "rounds": len(taken["conventional"]),
        **{name: _figures(taken, name, case) for name in taken},
    }


def _figures(taken: dict[str, list[float]], name: str, case: Case) -> dict[str, float]:
    num_students = 6 if name.startswith("six") else 1
    median = statistics.median(taken[name])
    return {
        "images_per_second": round(num_students * len(case.data.train) / median, 1),
        "ms_per_step_and_student": round(1000 * median / STEPS[case.batch_size] / num_students, 2),
        "ratio": round(ratio(taken, name, num_students=num_students), 3),
    }


def main() -> None:
    """Run everything, print it, keep it."""
    parser = argparse.ArgumentParser(description="How fast students train.")
    parser.add_argument("--seconds", type=float, default=120.0, help="of measuring for each pair and batch size")
    seconds = parser.parse_args().seconds
    peak = {
        name: convolution_peak(dtype, torch.device("cpu"))
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    with tempfile.TemporaryDirectory() as folder:
        cases = {batch_size: case_of(batch_size, Path(folder) / str(batch_size)) for batch_size in STEPS}
        small = compare(PAIRS[0], cases[64], seconds=seconds)
        large = compare(PAIRS[0], cases[256], seconds=seconds)
        narrow = compare(PAIRS[1], cases[64], seconds=seconds / 2)
        step = {
            "phases": _phases(cases[64]),
            "kinds": kinds_of_operations(trainees(PAIRS[0][1], cases[64], "bfloat16")[0], cases[64].data),
        }
    flops_per_image = 3 * count_flops(network(PAIRS[0][1]), (32, 32))  # the backward pass has two products for each
    images_per_second = small["one_student_bf16"]["images_per_second"]
    result = {
        "one_student_bf16_ratio": small["one_student_bf16"]["ratio"],
        "one_student_fp32_ratio": small["one_student_fp32"]["ratio"],
        "six_students_bf16_ratio": small["six_students_bf16"]["ratio"],
        "batch256_bf16_ratio": large["one_student_bf16"]["ratio"],
        "images_per_second": images_per_second,
        "share_of_peak": round(images_per_second * flops_per_image / peak["bf16"], 3),
        "peak_gflops": {name: round(value / 1e9) for name, value in peak.items()},
        "step": step,
        "comparisons": [small, large, narrow],
        "machine": machine(),
    }
    print_tables(result)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def _phases(case: Case) -> dict[str, Any]:
    answers = TimedAnswers(case.answers)
    timed = case._replace(answers=answers)
    return phases_of_a_step(trainees(PAIRS[0][1], timed, "bfloat16")[0], answers, case.data, num_epochs=4)


def print_tables(result: dict[str, Any]) -> None:
    """The figures for people."""
    for compared in result["comparisons"]:
        print(f"\n{compared['pair']}, batch {compared['batch_size']}, median of {compared['rounds']} rounds")
        for name in (key for key, value in compared.items() if isinstance(value, dict)):
            row = compared[name]
            speed, step = row["images_per_second"], row["ms_per_step_and_student"]
            print(f"  {name:29} {speed:8.1f} images/s {step:9.2f} ms a step and student {row['ratio']:7.2f}x")
    phases = result["step"]["phases"]
    print("\na step of one bf16 student, batch 64, stored logits")
    for phase, ms in phases["ms"].items():
        print(f"  {phase:20} {ms:9.3f} ms {phases['shares'][phase]:7.2%}")
    kinds = ", ".join(f"{name} {share:.1%}" for name, share in result["step"]["kinds"]["shares"].items())
    print(f"  by kind of operation: {kinds}")
    limits = ", ".join(f"{name} {value} GFLOP/s" for name, value in result["peak_gflops"].items())
    print(
        f"\npeak of a 3x3 convolution: {limits}; one bf16 student at batch 64 reaches {result['share_of_peak']:.1%}\n"
    )


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
    return {
        "processor": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
