"""Stage teacher_logits: the teacher's answers for every view of every train image, shared by all students."""

from __future__ import annotations

from pathlib import Path

import torch

from compress.artifact import load_model
from compress.data.prepared import load_prepared
from compress.data.view_schedule import ViewSettings
from compress.device import place, resolve_device
from compress.settings import Settings
from compress.teacher_logits import (
    TeacherLogitsManifest,
    TeacherLogitsSettings,
    read_manifest,
    write_switched_off,
    write_teacher_logits,
)
from pipelines.layout import Layout
from pipelines.params import load_params
from pipelines.progress import Counter


class TeacherLogitsParams(Settings):
    """Sections that this stage reads."""

    views: ViewSettings = ViewSettings()
    teacher_logits: TeacherLogitsSettings = TeacherLogitsSettings()


def run(root: Path) -> None:
    """Ask the teacher once and store its answers, or note that students ask it while they train."""
    layout = Layout(root)
    params = load_params(TeacherLogitsParams, layout.params)
    settings, data = params.teacher_logits, load_prepared(layout.prepared)
    network, card = load_model(layout.teacher)
    train = data.split("train")
    shape = (params.views.num_slots, len(train), len(card.classes)) if settings.enabled else (0, 0, 0)
    manifest = TeacherLogitsManifest(
        enabled=settings.enabled,
        teacher_sha256=card.saved_sha256,
        data_fingerprint=data.manifest.fingerprint,
        views=params.views,
        dtype=settings.dtype,
        shape=shape,
        max_abs_error=0.0,
        sha256="",
    )
    if not settings.enabled:
        write_switched_off(layout.teacher_logits, manifest)
        print("teacher logits: switched off; the teacher runs while students train")
        return
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    network = place(network, resolve_device(settings.device))
    num_answers = shape[0] * shape[1]
    size_mb = num_answers * shape[2] * (2 if settings.dtype == "float16" else 4) / 1e6
    print(f"teacher logits: {shape[0]} views of {shape[1]} images, {size_mb:.1f} MB")
    batches = write_teacher_logits(
        layout.teacher_logits, train, network, manifest=manifest, batch_size=settings.batch_size
    )
    with Counter("teacher logits") as counter:
        for num_done in batches:
            counter.show(num_done, num_answers)
    print(f"teacher logits: largest error of a stored logit {read_manifest(layout.teacher_logits).max_abs_error:.2g}")
