"""Stage teacher_logits: the teacher's answers for every view of every train image, shared by all students."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from compress.artifact import ModelCard, load_card, load_model
from compress.data.prepared import PreparedData, PreparedSplit, load_prepared
from compress.data.view_schedule import ViewSettings
from compress.device import place, resolve_device
from compress.errors import DeviceError
from compress.ranks import Ranks, agreed, wait_for_all
from compress.settings import Settings
from compress.teacher_logits import TeacherLogitsManifest, TeacherLogitsSettings
from compress.teacher_logits_writer import (
    BATCH_SIZE,
    Begun,
    Question,
    Shard,
    begin_writing,
    finish_writing,
    new_manifest,
    sample_views,
    write_chunks,
    write_switched_off,
)
from compress.teacher_pass import TeacherPass
from compress.teacher_runtime import PassSettings
from pipelines.absence import is_absent, leave_note
from pipelines.finished_work import keep_store, take_store_back
from pipelines.layout import Layout
from pipelines.params import load_params
from pipelines.progress import Counter
from pipelines.teacher_choice import Asked, ready_teacher
from pipelines.torchrun import ranks_of_stage

NUM_SAMPLES = 256
"""Views on which the shortcuts of the teacher's pass are measured."""


class TeacherLogitsParams(Settings):
    """Sections that this stage reads."""

    views: ViewSettings = ViewSettings()
    teacher_logits: TeacherLogitsSettings = TeacherLogitsSettings()


def run(root: Path) -> None:
    """Ask the teacher once and store its answers, or note that students ask it while they train.

    Killed, it goes on after the last whole chunk when it is run again. Ranks that torchrun started share the chunks.
    """
    with ranks_of_stage() as ranks:
        layout = Layout(root)
        params = load_params(TeacherLogitsParams, layout.params)
        if not is_absent(layout.teacher) and params.teacher_logits.enabled:
            _ask(layout, params, ranks)
        elif ranks.is_first:
            _leave_without_answers(layout, params)


def _leave_without_answers(layout: Layout, params: TeacherLogitsParams) -> None:
    if is_absent(layout.teacher):
        leave_note(layout.teacher_logits)
        print("teacher logits: there is no teacher")
        return
    question = question_of(load_card(layout.teacher), load_prepared(layout.prepared), params.views)
    write_switched_off(layout.teacher_logits, params.teacher_logits, question)
    print("teacher logits: switched off; the teacher runs while students train")


def _ask(layout: Layout, params: TeacherLogitsParams, ranks: Ranks) -> None:
    data = load_prepared(layout.prepared)
    teacher, manifest = ready(layout, data, params)
    manifest = _same_on_all(manifest)
    print(f"teacher logits: {teacher}", flush=True)
    num_views, num_images, _ = manifest.shape
    print(f"teacher logits: {num_views} views of {num_images} images, {manifest.size_bytes / 1e6:.1f} MB", flush=True)
    finished = _write(layout, data.split("train"), teacher, manifest, ranks)
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
    samples = sample_views(train, params.views, num_samples=num_samples, device=device)
    batch_size = settings.batch_size or BATCH_SIZE[device.type]
    wanted = PassSettings(
        backend=settings.backend, precision=settings.precision, max_error=settings.max_precision_error
    )
    asked = Asked(place(network, device), card.saved_sha256, samples, batch_size, torch.get_num_threads())
    teacher = ready_teacher(layout, asked, wanted)
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


def _same_on_all(manifest: TeacherLogitsManifest) -> TeacherLogitsManifest:
    """The first rank's, after checking that this one computes in the same way.

    Raises:
        DeviceError: it does not.
    """
    first = agreed(manifest)
    if first.computation != manifest.computation:
        raise DeviceError(
            f"this rank computes the teacher's logits as {manifest.computation}, the first one as {first.computation}; "
            "start ranks on equal devices alone, and set teacher_logits.threads, precision and backend"
        )
    return first


def _begin(layout: Layout, manifest: TeacherLogitsManifest) -> Begun:
    work = work_folder(layout)
    is_kept = take_store_back(work)
    begun = begin_writing(work, layout.teacher_logits, manifest)
    if is_kept and begun.num_rows_done < manifest.num_rows:
        # Not whole after all; DVC's cache may hold the same file under another name, so it must not be written to.
        shutil.rmtree(work)
        begun = begin_writing(work, layout.teacher_logits, manifest)
    if begun.discarded is not None:
        print(f"teacher logits: the partial store in {work} is discarded: {begun.discarded}", flush=True)
    if begun.num_rows_done:
        print(f"teacher logits: going on after {begun.num_rows_done} of {manifest.num_rows} views", flush=True)
    return begun


def _write(
    layout: Layout, split: PreparedSplit, teacher: TeacherPass, manifest: TeacherLogitsManifest, ranks: Ranks
) -> TeacherLogitsManifest:
    """All ranks write, to one file; the first one begins and finishes it."""
    work, shard = work_folder(layout), Shard(ranks.rank, ranks.num_ranks)
    begun = agreed(_begin(layout, manifest) if ranks.is_first else Begun(0, None))
    if begun.num_rows_done < manifest.num_rows:
        with Counter("teacher logits") as counter:
            for num_done in write_chunks(work, split, teacher, manifest=manifest, shard=shard):
                # Without what was there before: the counter derives the time left from its own start. The other ranks
                # are taken to be as far as this one.
                done = num_done * ranks.num_ranks - begun.num_rows_done
                counter.show(max(done, 0), manifest.num_rows - begun.num_rows_done)
    wait_for_all()
    if not ranks.is_first:
        return agreed(manifest)
    keep_store(work)
    return agreed(finish_writing(work, layout.teacher_logits, manifest))
