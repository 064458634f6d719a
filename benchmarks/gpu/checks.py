"""Whether the GPU's short cuts are what they stand for; each check is one entry, and none stops the others."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.workload import (
    Scale,
    cifar_data,
    cifar_network,
    noted_warnings,
    recipe,
    stored_teacher,
    teacher_pass,
    trainee,
)
from compress.batch_source import BatchPlan, HostBatches, PrefetchedBatches, ResidentBatches, resident_data
from compress.batches import TrainingData
from compress.data.mixing import Mixing
from compress.data.views import view_images
from compress.methods import CRD, KD
from compress.optimization import AdamW
from compress.resident_teacher import ResidentTeacher
from compress.teacher_logits import OnlineTeacher, TeacherAnswers
from compress.tensors import as_float_images
from compress.train import train_together
from compress.training_state import EpochReport, TrainingState, TrainSettings

NUM_BATCHES = 20
"""In the small data set that the checks train on."""


def checks(scale: Scale, seconds: float) -> dict[str, Any]:
    """Every check by name; `ok` says whether all of them are."""
    data = _few(scale)
    found: dict[str, Any] = {"seconds_allowed": round(seconds)}
    with tempfile.TemporaryDirectory() as folder:
        for name, check in CHECKS.items():
            try:
                found[name] = check(scale, data, Path(folder) / name)
            except Exception as error:  # the others shall run; the file says what happened
                found[name] = {"ok": False, "error": f"{type(error).__name__}: {error}"}
    found["ok"] = all(each["ok"] for each in found.values() if isinstance(each, dict))
    return found


def views_of_the_device(scale: Scale, data: TrainingData, folder: Path) -> dict[str, Any]:
    """Batches cut out on the device, and those a thread has copied, against the host's."""
    plan = BatchPlan(data, scale.batch_size, Mixing(mixup_alpha=0.8, cutmix_alpha=1.0), scale.device, seed=3)
    sources = {
        "resident": ResidentBatches(plan._replace(data=resident_data(data, scale.device, resident_bytes=1 << 40))),
        "prefetched": PrefetchedBatches(plan),
    }
    different = dict.fromkeys(sources, 0)
    for name, source in sources.items():
        for expected, batch in zip(HostBatches(plan).epoch(1), source.epoch(1), strict=True):
            same = torch.equal(expected.images, batch.images) and torch.equal(expected.labels, batch.labels)
            different[name] += not same
    return {"ok": not any(different.values()), "different_batches": different}


def stored_answers(scale: Scale, data: TrainingData, folder: Path) -> dict[str, Any]:
    """Stored answers, read on the device and on the host, against those of the teacher asked anew."""
    asked = teacher_pass(cifar_network(scale.teacher, scale), data, scale.device)
    indices = np.arange(min(256, len(data.train)), dtype=np.int64)
    slots = indices % data.views.num_slots
    views = view_images(data.train, data.views.augmentation, indices=indices, slots=slots, seed=data.views.seed)
    images = as_float_images(views, scale.device)
    online = asked(images)
    errors: dict[str, float] = {}
    agree = True
    for dtype in ("float32", "float16", "uint8"):
        stored = stored_teacher(folder / dtype, asked, data, scale, dtype=dtype)
        there, here = (each.logits(images, indices, slots) for each in (ResidentTeacher(stored, scale.device), stored))
        agree &= torch.equal(there, here)
        errors[dtype] = float((here - online).abs().max())
    largest = float(online.abs().max())
    return {
        "ok": agree and errors["float32"] <= 1e-3 * largest and errors["float16"] <= 3e-3 * largest,
        "host_equals_device": agree,
        "largest_difference_from_online": errors,
        "largest_logit": largest,
    }


def teacher_precision(scale: Scale, data: TrainingData, folder: Path) -> dict[str, Any]:
    """What bfloat16 and TensorFloat-32 change of a teacher's logits; its weights are random, a trained one's differ."""
    errors: dict[str, float] = {}
    for precision in ("bfloat16", "tensorfloat32") if scale.device.type == "cuda" else ("bfloat16",):
        asked = teacher_pass(cifar_network(scale.teacher, scale), data, scale.device, precision)
        errors[precision] = asked.error
    return {"ok": all(math.isfinite(error) for error in errors.values()), "largest_difference": errors}


def recorded_steps(scale: Scale, data: TrainingData, folder: Path) -> dict[str, Any]:
    """An epoch of recorded steps against one of steps launched kernel by kernel, for several kinds of training."""
    asked = teacher_pass(cifar_network(scale.teacher, scale), data, scale.device)
    stored = stored_teacher(folder, asked, data, scale)
    online = OnlineTeacher(cifar_network(scale.teacher, scale).to(scale.device), "float32")
    cases: dict[str, tuple[dict[str, Any], TeacherAnswers]] = {
        "sgd_stored_float32": ({"precision": "float32"}, stored),
        "sgd_stored_bfloat16": ({"precision": "bfloat16"}, stored),
        "adamw_average_clipping": (
            {"precision": "float32", "optimizer": AdamW(), "ema_decay": 0.99, "gradient_clip_norm": 1.0},
            stored,
        ),
        "online_mixed": ({"precision": "float32", "mixing": Mixing(mixup_alpha=0.8)}, online),
        "in_pieces": ({"precision": "float32", "micro_batch_size": scale.batch_size // 2}, stored),
    }
    found: dict[str, Any] = {}
    for name, (changes, teacher) in cases.items():
        trained = {}
        for graph in ("off", "auto"):
            with noted_warnings() as warned:
                trained[graph] = _trained(scale, data, recipe(scale, epochs=2, cuda_graph=graph, **changes), teacher)
        difference = _relative_difference(trained["auto"], trained["off"])
        recorded = not any("without a CUDA graph" in message for message in warned)
        found[name] = {"relative_difference_of_weights": difference, "recorded": recorded, "warnings": warned}
    on_gpu = scale.device.type == "cuda"
    ok = all(each["relative_difference_of_weights"] < 0.05 and each["recorded"] for each in found.values())
    return {"ok": ok, "recording_tried": on_gpu, **found}


def fall_backs(scale: Scale, data: TrainingData, folder: Path) -> dict[str, Any]:
    """What can not be recorded says so and trains all the same: float16 with a loss scale, a method that remembers."""
    teacher = OnlineTeacher(cifar_network(scale.teacher, scale).to(scale.device), "float32")
    found: dict[str, Any] = {}
    cases: dict[str, tuple[dict[str, Any], Any]] = {"crd": ({}, CRD(num_negatives=16))}
    if scale.device.type == "cuda":
        cases["float16"] = ({"precision": "float16"}, KD())
    for name, (changes, method) in cases.items():
        with noted_warnings() as warned:
            state = _trained(scale, data, recipe(scale, epochs=2, **changes), teacher, method)
        losses = [report.train_loss for report in state.history]
        said = scale.device.type == "cpu" or sum("without a CUDA graph" in message for message in warned) == 1
        found[name] = {"losses": losses, "said_so_once": said, "warnings": warned}
    ok = all(each["said_so_once"] and all(map(math.isfinite, each["losses"])) for each in found.values())
    return {"ok": ok, **found}


def waits_for_the_device(scale: Scale, data: TrainingData, folder: Path) -> dict[str, Any]:
    """How often the host waits in an epoch of many steps, after a first one; torch overlooks some kinds of waiting."""
    if scale.device.type == "cpu":
        return {"ok": True, "skipped": "there is no device to wait for"}
    stored = stored_teacher(folder, teacher_pass(cifar_network(scale.teacher, scale), data, scale.device), data, scale)
    found: dict[str, Any] = {}
    for graph in ("off", "auto"):
        settings = recipe(scale, epochs=2, cuda_graph=graph)
        one = trainee(cifar_network(scale.student, scale), data, settings, teacher=stored)
        reports = train_together([one], data, seed=0)
        next(report for _, report in reports if isinstance(report, EpochReport))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                for _ in reports:
                    pass
            finally:
                torch.cuda.set_sync_debug_mode("default")
        places = sorted(
            {f"{Path(each.filename).name}:{each.lineno}" for each in caught if "synchron" in str(each.message)}
        )
        count = sum("called a synchronizing" in str(each.message) for each in caught)
        found[f"graph_{graph}"] = {"waits_in_an_epoch": count, "steps": NUM_BATCHES, "places": places}
    return {"ok": all(each["waits_in_an_epoch"] < NUM_BATCHES for each in found.values()), **found}


CHECKS: dict[str, Callable[[Scale, TrainingData, Path], dict[str, Any]]] = {
    "views_of_the_device": views_of_the_device,
    "stored_answers": stored_answers,
    "teacher_precision": teacher_precision,
    "recorded_steps": recorded_steps,
    "fall_backs": fall_backs,
    "waits_for_the_device": waits_for_the_device,
}


def _few(scale: Scale) -> TrainingData:
    """Some full batches and a smaller one."""
    num_train = min(scale.num_train, NUM_BATCHES * scale.batch_size + scale.batch_size // 2)
    return cifar_data(replace(scale, num_train=num_train, num_validation=min(scale.num_validation, 256)))


def _trained(
    scale: Scale, data: TrainingData, settings: TrainSettings, teacher: TeacherAnswers, method: Any = None
) -> TrainingState:
    network = cifar_network(scale.student, scale)
    one = trainee(network, data, settings, teacher=teacher, **({} if method is None else {"method": method}))
    for _ in train_together([one], data, seed=0):
        pass
    return one.state


def _relative_difference(first: TrainingState, second: TrainingState) -> float:
    """Of the weights, relative to their size."""
    one, other = (torch.cat([p.detach().double().flatten() for p in s.network.parameters()]) for s in (first, second))
    return float((one - other).norm() / other.norm())
