"""CIFAR-100 sized training: a step without and with a recording, and the whole recipe of one student and of six."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.workload import (
    EPOCHS,
    Scale,
    cifar_data,
    cifar_network,
    epoch_seconds,
    noted_warnings,
    recipe,
    stored_teacher,
    teacher_pass,
    trainee,
)
from benchmarks.peak import synchronize
from compress.batch_source import BatchPlan
from compress.batches import TrainingData
from compress.cuda_graph import GpuRecorder
from compress.models import count_flops
from compress.residence import memory_for_data, settle
from compress.steps import Moment, Steps
from compress.teacher_logits import StoredTeacher

RECIPE_VIEWS = 162


def prepare(folder: Path, scale: Scale) -> tuple[TrainingData, StoredTeacher, float]:
    """Data, stored answers, and the seconds that a million answers took."""
    data = cifar_data(scale)
    asked = teacher_pass(cifar_network(scale.teacher, scale), data, scale.device, "auto")
    synchronize(scale.device)
    started = time.monotonic()
    stored = stored_teacher(folder, asked, data, scale)
    return data, stored, (time.monotonic() - started) / stored.manifest.num_rows * 1e6


def step_times(scale: Scale, seconds: float, *, peak_tflops: float | None) -> dict[str, Any]:
    """Milliseconds of a step: launched kernel by kernel or recorded, data on the host or on the device."""
    with tempfile.TemporaryDirectory() as folder:
        data, stored, _ = prepare(Path(folder) / "answers", scale)
        found: dict[str, Any] = {"seconds_allowed": round(seconds)}
        for graph in ("off", "auto"):
            for resident in ("off", "auto"):
                name = f"graph_{graph}_resident_{resident}"
                with noted_warnings() as warned:
                    found[name] = _step_time(scale, data, stored, cuda_graph=graph, data_on_gpu=resident)
                found[name]["warnings"] = warned
    images_per_second = found["graph_auto_resident_auto"]["images_per_second"]
    flops = 3 * count_flops(cifar_network(scale.student, scale), (32, 32))
    found["student_tflops"] = round(images_per_second * flops / 1e12, 3)
    if peak_tflops:
        found["share_of_bf16_matmul_peak"] = round(found["student_tflops"] / peak_tflops, 4)
    return found


def _step_time(scale: Scale, data: TrainingData, stored: StoredTeacher, **changes: Any) -> dict[str, float]:
    settings = recipe(scale, **changes)
    student = trainee(cifar_network(scale.student, scale), data, settings, teacher=stored)
    plan = BatchPlan(data, scale.batch_size, None, scale.device, seed=0)
    source = settle([student], plan, resident_bytes=memory_for_data([student], scale.device))
    steps = Steps([student], GpuRecorder() if scale.device.type == "cuda" else None)
    num_steps = math.ceil(len(data.train) / scale.batch_size)
    taken: list[float] = []
    batches = source.epoch(0)
    started, since = time.perf_counter(), 0
    for step, batch in enumerate(batches):
        steps.take(0, batch, Moment(0, 0, step, num_steps))
        since += 1
        if since == scale.num_timed or step == num_steps - 2:
            synchronize(scale.device)
            taken.append((time.perf_counter() - started) / since)
            started, since = time.perf_counter(), 0
        if len(taken) == 4:
            break
    milliseconds = 1000 * statistics.median(taken[1:] or taken)  # warm-up and recording are in the first
    return {
        "ms_per_step": round(milliseconds, 4),
        "images_per_second": round(scale.batch_size / milliseconds * 1000, 1),
        "measurements": len(taken),
    }


def whole_recipe(scale: Scale, seconds: float, *, num_students: int) -> dict[str, Any]:
    """Minutes of the 240 epochs of students side by side, run or extrapolated, and of the answers that they share."""
    with tempfile.TemporaryDirectory() as folder:
        data, stored, per_million = prepare(Path(folder) / "answers", scale)
        settings = recipe(scale)
        students = [
            trainee(cifar_network(scale.student, scale, seed), data, settings, teacher=stored)
            for seed in range(num_students)
        ]
        with noted_warnings() as warned:
            taken = epoch_seconds(students, data, scale.device, seconds=seconds)
        peak_gib = _peak_gib(scale)
    later = statistics.median(taken[1:])
    training = sum(taken) if len(taken) == EPOCHS else taken[0] + (EPOCHS - 1) * later
    answers = RECIPE_VIEWS * scale.num_train / 1e6 * per_million
    return {
        "students": num_students,
        "epochs_run": len(taken),
        "how": "run" if len(taken) == EPOCHS else f"extrapolated to {EPOCHS} epochs from {len(taken)}",
        "first_epoch_seconds": round(taken[0], 2),
        "epoch_seconds": round(later, 3),
        "training_minutes": round(training / 60, 2),
        "images_per_second": round(num_students * scale.num_train / later, 1),
        "stored_answers_seconds_per_million": round(per_million, 2),
        "stored_answers_minutes": round(answers / 60, 2),
        "stored_answers_how": f"extrapolated to {RECIPE_VIEWS} views from {scale.num_views}",
        "minutes": round((training + answers) / 60, 2),
        "peak_memory_gib": peak_gib,
        "warnings": warned,
    }


def _peak_gib(scale: Scale) -> float | None:
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if scale.device.type == "cuda" else None
