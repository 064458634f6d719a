"""A teacher that runs while its students train, in the back-end and precision that teacher_logits asks for."""

from __future__ import annotations

from pathlib import Path

import torch

from compress.artifact import load_model
from compress.data.prepared import PreparedData
from compress.data.view_schedule import ViewSettings
from compress.device import place, resolve_device
from compress.methods import TeacherMethod
from compress.teacher_logits import OnlineTeacher, read_manifest
from compress.teacher_logits_writer import sample_views
from compress.teacher_pass import choose_precision
from compress.teacher_runtime import PassSettings
from pipelines.absence import is_absent
from pipelines.layout import Layout
from pipelines.settings import Student
from pipelines.teacher_choice import Asked, ready_teacher

NUM_SAMPLES, MAX_SAMPLES = 64, 512
"""Views on which shortcuts are measured: a batch, within these bounds."""


def online_teacher(
    layout: Layout, folder: Path, student: Student, *, data: PreparedData, views: ViewSettings
) -> tuple[OnlineTeacher, dict[str, str]]:
    """The network in `folder`, ready to teach a student, and what belongs to the student's lineage.

    Methods on logits take the fastest way that is exact enough. Features come from torch and from the network as it
    is, nothing folded.

    Raises:
        CompressError: a back-end is not installed, or not to be had on the student's device.
        ModelError: the teacher's logits are not finite.
    """
    network, card = load_model(folder)
    device, settings = resolve_device(student.train.device), _settings(layout)
    placed = place(network, device)
    num_samples = min(max(NUM_SAMPLES, student.train.batch_size), MAX_SAMPLES)
    samples = sample_views(data.split("train"), views, num_samples=num_samples, device=device)
    if isinstance(student.method, TeacherMethod):
        threads = student.train.threads or torch.get_num_threads()
        asked = Asked(placed, card.saved_sha256, samples, student.train.batch_size, threads)
        logits_from = ready_teacher(layout, asked, settings)
        teacher, way = OnlineTeacher(placed, logits_from=logits_from), logits_from.way
        print(f"teacher: runs online; {logits_from}", flush=True)
    else:
        precision, error = choose_precision(placed, samples, precision=settings.precision, max_error=settings.max_error)
        teacher, way = OnlineTeacher(placed, precision), f"torch {torch.__version__}, {precision}"
        print(f"teacher: runs online in {precision}, largest logit difference from float32 {error:.2g}", flush=True)
    # Both are resolved on this machine: a checkpoint of another way is not continued.
    return teacher, {"teacher_sha256": card.saved_sha256, "teacher_pass": way}


def _settings(layout: Layout) -> PassSettings:
    """What `teacher_logits` asks for; plain float32 where no teacher stage has left it."""
    if is_absent(layout.teacher):
        return PassSettings()
    stored = read_manifest(layout.teacher_logits)
    return PassSettings(backend=stored.backend, precision=stored.precision, max_error=stored.max_precision_error)
