"""Decides what stays in a GPU's memory while networks train: images first, then the teacher's stored answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from compress.batch_source import BatchPlan, BatchSource, ResidentBatches, batch_source
from compress.objective import LogitObjective
from compress.resident import pixel_bytes
from compress.resident_teacher import ResidentTeacher, is_decoded_on_device, row_bytes
from compress.teacher_logits import StoredTeacher
from compress.training_state import Trainee

SHARE_OF_FREE_MEMORY = 0.5
"""The rest is for activations, gradients and recordings."""


def memory_for_data(trainees: Sequence[Trainee], device: torch.device) -> int:
    """Bytes of device memory that data may take: none on a CPU, or where a setting says so."""
    if device.type == "cpu" or any(each.settings.data_on_gpu == "off" for each in trainees):
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return int(SHARE_OF_FREE_MEMORY * free)


def settle(trainees: Sequence[Trainee], plan: BatchPlan, *, resident_bytes: int) -> BatchSource:
    """The batches of a training, images and stored answers in device memory as far as they fit into these bytes."""
    source = batch_source(plan, resident_bytes=resident_bytes)
    if isinstance(source, ResidentBatches):
        taken = sum(pixel_bytes(split) for split in (plan.data.train, plan.data.validation))
        keep_answers_resident_(trainees, plan.device, resident_bytes=resident_bytes - taken)
    return source


def keep_answers_resident_(trainees: Sequence[Trainee], device: torch.device, *, resident_bytes: int) -> None:
    """Let objectives read their teacher's stored answers from device memory, each store once, as far as they fit."""
    kept: dict[int, ResidentTeacher] = {}
    for trainee in trainees:
        objective = trainee.state.objective
        if not isinstance(objective, LogitObjective) or not isinstance(objective.teacher, StoredTeacher):
            continue
        stored = objective.teacher
        if id(stored) not in kept and is_decoded_on_device(stored) and row_bytes(stored) <= resident_bytes:
            kept[id(stored)] = ResidentTeacher(stored, device)
            resident_bytes -= row_bytes(stored)
        if id(stored) in kept:
            objective.teacher = kept[id(stored)]
