"""Writing a store: the teacher is asked about every view of every image, in chunks that survive a killed process.

One process calls `write_teacher_logits`. Several share the work through files alone: one calls `begin_writing`, then
each iterates `write_chunks` with its own shard, and when all have ended one calls `finish_writing`. However many
write, and however often they are interrupted, the bytes are the same: a batch never crosses a chunk, so it has the
same images in it.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import compress
from compress.data.prepared import PreparedSplit
from compress.data.view_schedule import ViewSettings
from compress.data.views import view_images
from compress.errors import ArtifactError, ParamsError
from compress.fingerprint import fingerprint_of_files
from compress.logit_journal import (
    ASKED,
    JOURNALS,
    Begun,
    ChunkWriter,
    Shard,
    begin,
    check_nobody_writes,
    finished_chunks,
    opened_journal,
)
from compress.logit_store import LOGITS, Computation, TeacherLogitsManifest, write_manifest
from compress.store_place import check_room, move_into_place
from compress.teacher_logits import TeacherLogitsSettings
from compress.teacher_pass import TeacherPass
from compress.tensors import as_float_images
from compress.types import ByteImages, FloatImages, LogitArray

BATCH_SIZE = {"cpu": 64, "cuda": 512}
"""A CPU is 1.4 times slower at 256 than at 64 images, which stay in its cache; a GPU wants many."""
WHOLE = Shard()


class Question(NamedTuple):
    """What a store answers."""

    teacher_sha256: str
    data_fingerprint: str
    views: ViewSettings
    num_images: int
    num_classes: int


def new_manifest(settings: TeacherLogitsSettings, question: Question, teacher: TeacherPass) -> TeacherLogitsManifest:
    """The manifest of a store that is to be written; errors and hashes are filled in when it is.

    Raises:
        ParamsError: there are no more classes than top_k.
    """
    if settings.top_k is not None and settings.top_k >= question.num_classes:
        raise ParamsError(
            f"teacher_logits.top_k: {settings.top_k} keeps all of {question.num_classes} classes; leave it out"
        )
    computation = Computation(
        precision=teacher.precision,
        device=torch.cuda.get_device_name(teacher.device) if teacher.device.type == "cuda" else "cpu",
        threads=torch.get_num_threads(),
        batch_size=settings.batch_size or BATCH_SIZE[teacher.device.type],
        folded_batch_norms=teacher.num_folded,
        runtime=teacher.runtime,
        torch=str(torch.__version__),
    )
    return TeacherLogitsManifest(
        enabled=True,
        teacher_sha256=question.teacher_sha256,
        data_fingerprint=question.data_fingerprint,
        views=question.views,
        dtype=settings.dtype,
        top_k=settings.top_k,
        shape=(question.views.num_slots, question.num_images, question.num_classes),
        precision=settings.precision,
        backend=settings.backend,
        max_precision_error=settings.max_precision_error,
        rows_per_chunk=settings.rows_per_chunk,
        computation=computation,
        pass_error=teacher.error,
        num_pass_samples=teacher.num_samples,
    )


def write_switched_off(folder: Path, settings: TeacherLogitsSettings, question: Question) -> TeacherLogitsManifest:
    """Leave only a manifest that says that the teacher runs online."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    manifest = TeacherLogitsManifest(
        enabled=False,
        teacher_sha256=question.teacher_sha256,
        data_fingerprint=question.data_fingerprint,
        views=question.views,
        dtype=settings.dtype,
        shape=(0, 0, 0),
        precision=settings.precision,
        backend=settings.backend,
        max_precision_error=settings.max_precision_error,
    )
    return write_manifest(folder, manifest)


def sample_views(split: PreparedSplit, views: ViewSettings, *, num_samples: int, device: torch.device) -> FloatImages:
    """Random views of random images, always the same ones, to measure a pass on."""
    random = np.random.default_rng(0)
    indices = random.integers(0, len(split), num_samples, dtype=np.int64)
    slots = random.integers(0, views.num_slots, num_samples, dtype=np.int64)
    images = view_images(split, views.augmentation, indices=indices, slots=slots, seed=views.seed)
    return as_float_images(images, device)


def write_teacher_logits(
    folder: Path,
    split: PreparedSplit,
    teacher: TeacherPass,
    *,
    manifest: TeacherLogitsManifest,
    work: Path | None = None,
) -> Iterator[int]:
    """Ask the teacher about every view of every image of a split and store the answers; yields views done so far.

    The folder appears when it is whole. Until then the rows are in `work`, from where a killed writer goes on.

    Raises:
        ModelError: the teacher's logits are not finite, or too large for the stored type.
        ArtifactError: the disk is too small, or another process is writing the same.
    """
    work = work or folder.with_name(f".{folder.name}.partial")
    begin_writing(work, folder, manifest)
    yield from write_chunks(work, split, teacher, manifest=manifest)
    finish_writing(work, folder, manifest)


def begin_writing(work: Path, folder: Path, manifest: TeacherLogitsManifest) -> Begun:
    """Make a partial store in `work`, or find the one that was interrupted; says what is done and what was discarded.

    Raises:
        ArtifactError: the disk is too small, or another process is writing there.
    """
    begun = begin(work, manifest, code=_code_fingerprint())
    check_room(work, folder, manifest)
    return begun


def write_chunks(
    work: Path,
    split: PreparedSplit,
    teacher: TeacherPass,
    *,
    manifest: TeacherLogitsManifest,
    shard: Shard = WHOLE,
) -> Iterator[int]:
    """Write those of a shard's chunks that are not there yet; yields how many of its views are done.

    Raises:
        ModelError: the teacher's logits are not finite, or too large for the stored type.
        ArtifactError: nobody has begun, another process writes the same chunks, or the disk is full.
    """
    with opened_journal(work, shard) as journal, (work / LOGITS).open("r+b") as file:
        done = finished_chunks(work, manifest)
        todo = [chunk for chunk in shard.chunks(manifest) if chunk not in done]
        num_done = sum(len(manifest.rows_of(chunk)) for chunk in shard.chunks(manifest) if chunk in done)
        writer = ChunkWriter(file, journal, manifest)
        for rows, logits in _answers(split, teacher, manifest, todo):
            writer.write(rows, logits)
            num_done += len(rows)
            yield num_done


def finish_writing(work: Path, folder: Path, manifest: TeacherLogitsManifest) -> TeacherLogitsManifest:
    """Make the store of a partial one whose chunks are all written, whoever wrote them; every row is hashed again.

    Raises:
        ArtifactError: a chunk is missing, or a process is still writing.
    """
    check_nobody_writes(work)
    done = finished_chunks(work, manifest)
    missing = [chunk for chunk in range(manifest.num_chunks) if chunk not in done]
    if missing:
        raise ArtifactError(
            f"{len(missing)} of {manifest.num_chunks} chunks in {work} are not written, the first is {missing[0]}; "
            "run the teacher_logits stage again, it goes on there"
        )
    records = [done[chunk] for chunk in range(manifest.num_chunks)]
    results = {
        "max_abs_error": max(record.max_abs_error for record in records),
        "max_probability_error": max(record.max_probability_error for record in records),
        "chunk_sha256": tuple(record.sha256 for record in records),
    }
    finished = write_manifest(work, manifest.model_copy(update=results))
    move_into_place(work, folder)
    for leftover in (folder / ASKED, *folder.glob(JOURNALS)):
        leftover.unlink()
    return finished


def _answers(
    split: PreparedSplit, teacher: TeacherPass, manifest: TeacherLogitsManifest, chunks: Sequence[int]
) -> Iterator[tuple[range, LogitArray]]:
    """Logits of rows, batch by batch; while a GPU computes, the next views are made and the last answers stored."""
    asked: tuple[range, Tensor] | None = None
    for rows, images in _views_ahead(split, manifest, chunks):
        # Taken off the device before more is asked of it: the copy would wait for that too.
        answered = None if asked is None else (asked[0], asked[1].cpu().numpy())
        asked = rows, teacher(as_float_images(images, teacher.device))
        if answered is not None:
            yield answered
    if asked is not None:
        yield asked[0], asked[1].cpu().numpy()


def _views_ahead(
    split: PreparedSplit, manifest: TeacherLogitsManifest, chunks: Sequence[int]
) -> Iterator[tuple[range, ByteImages]]:
    """Views of all rows of chunks; a thread makes the next batch's meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="compress-views") as maker:
        waiting: deque[tuple[range, Future[ByteImages]]] = deque()
        for rows in _batches(manifest, chunks):
            waiting.append((rows, maker.submit(_views, split, manifest, rows)))
            if len(waiting) > 1:
                ready, future = waiting.popleft()
                yield ready, future.result()
        for ready, future in waiting:
            yield ready, future.result()


def _batches(manifest: TeacherLogitsManifest, chunks: Sequence[int]) -> Iterator[range]:
    assert manifest.computation is not None
    size = manifest.computation.batch_size
    for chunk in chunks:
        rows = manifest.rows_of(chunk)
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


def _views(split: PreparedSplit, manifest: TeacherLogitsManifest, rows: range) -> ByteImages:
    slots, indices = np.divmod(np.arange(rows.start, rows.stop, dtype=np.int64), manifest.shape[1])
    views = manifest.views
    return view_images(split, views.augmentation, indices=indices, slots=slots, seed=views.seed)


def _code_fingerprint() -> str:
    """Hash of the source files that decide what the answers are; a partial store of other code does not go on."""
    package = Path(compress.__file__).parent
    names = ("device", "logit_rows", "onnx_session", "teacher_pass", "teacher_runtime", "tensors")
    files = [package / f"{name}.py" for name in names]
    folders = [path for name in ("data", "export", "models") for path in (package / name).rglob("*.py")]
    return fingerprint_of_files([*files, *folders])


__all__ = [
    "BATCH_SIZE",
    "Begun",
    "Question",
    "Shard",
    "begin_writing",
    "finish_writing",
    "new_manifest",
    "sample_views",
    "write_chunks",
    "write_switched_off",
    "write_teacher_logits",
]
