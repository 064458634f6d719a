"""Stage teacher_logits: the teacher's answers for every view of every train image, shared by all students."""

from __future__ import annotations

from pathlib import Path

import torch

from compress.artifact import ModelCard, load_card, load_model
from compress.data.prepared import PreparedData, load_prepared
from compress.data.view_schedule import ViewSettings
from compress.device import place, resolve_device
from compress.settings import Settings
from compress.teacher_logits import TeacherLogitsManifest, TeacherLogitsSettings
from compress.teacher_logits_writer import (
    Question,
    begin_writing,
    finish_writing,
    new_manifest,
    sample_views,
    write_chunks,
    write_switched_off,
)
from compress.teacher_pass import TeacherPass, prepare_pass
from pipelines.absence import is_absent, leave_note
from pipelines.layout import Layout
from pipelines.params import load_params
from pipelines.progress import Counter

NUM_SAMPLES = 256
"""Views on which the shortcuts of the teacher's pass are measured."""


class TeacherLogitsParams(Settings):
    """Sections that this stage reads."""

    views: ViewSettings = ViewSettings()
    teacher_logits: TeacherLogitsSettings = TeacherLogitsSettings()


def run(root: Path) -> None:
    """Ask the teacher once and store its answers, or note that students ask it while they train.

    Killed, it goes on after the last whole chunk when it is run again.
    """
    layout = Layout(root)
    if is_absent(layout.teacher):
        leave_note(layout.teacher_logits)
        print("teacher logits: there is no teacher")
        return
    params = load_params(TeacherLogitsParams, layout.params)
    data = load_prepared(layout.prepared)
    if not params.teacher_logits.enabled:
        question = question_of(load_card(layout.teacher), data, params.views)
        write_switched_off(layout.teacher_logits, params.teacher_logits, question)
        print("teacher logits: switched off; the teacher runs while students train")
        return
    teacher, manifest = ready(layout, data, params)
    print(f"teacher logits: {teacher}", flush=True)
    num_views, num_images, _ = manifest.shape
    print(f"teacher logits: {num_views} views of {num_images} images, {manifest.size_bytes / 1e6:.1f} MB", flush=True)
    finished = _write(layout, data, teacher, manifest)
    kept = "logit" if manifest.top_k is None else f"one of the {manifest.top_k} largest logits"
    print(
        f"teacher logits: largest error of a stored {kept} {finished.max_abs_error:.2g}, "
        f"of a class probability {finished.max_probability_error:.2g}"
    )


def ready(layout: Layout, data: PreparedData, params: TeacherLogitsParams) -> tuple[TeacherPass, TeacherLogitsManifest]:
    """The teacher as it will be asked, and the manifest of what will be written; sets the number of CPU threads."""
    settings = params.teacher_logits
    network, card = load_model(layout.teacher)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = resolve_device(settings.device)
    train = data.split("train")
    num_samples = min(NUM_SAMPLES, params.views.num_slots * len(train))
    teacher = prepare_pass(
        place(network, device),
        sample_views(train, params.views, num_samples=num_samples, device=device),
        precision=settings.precision,
        max_error=settings.max_precision_error,
    )
    return teacher, new_manifest(settings, question_of(card, data, params.views), teacher)


def question_of(card: ModelCard, data: PreparedData, views: ViewSettings) -> Question:
    """What this project's store answers."""
    return Question(
        teacher_sha256=card.saved_sha256,
        data_fingerprint=data.manifest.fingerprint,
        views=views,
        num_images=data.manifest.splits["train"].num_images,
        num_classes=len(card.classes),
    )


def work_folder(layout: Layout) -> Path:
    """Where a store is until it is whole; DVC deletes the stage's own output before the stage runs again."""
    return layout.work("teacher_logits") / "partial"


def _write(
    layout: Layout, data: PreparedData, teacher: TeacherPass, manifest: TeacherLogitsManifest
) -> TeacherLogitsManifest:
    work = work_folder(layout)
    begun = begin_writing(work, layout.teacher_logits, manifest)
    if begun.discarded is not None:
        print(f"teacher logits: the partial store in {work} is discarded: {begun.discarded}", flush=True)
    if begun.num_rows_done:
        print(f"teacher logits: going on after {begun.num_rows_done} of {manifest.num_rows} views", flush=True)
    with Counter("teacher logits") as counter:
        for num_done in write_chunks(work, data.split("train"), teacher, manifest=manifest):
            # Without what was there before: the counter derives the time left from its own start.
            counter.show(num_done - begun.num_rows_done, manifest.num_rows - begun.num_rows_done)
    return finish_writing(work, layout.teacher_logits, manifest)
