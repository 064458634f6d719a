"""What storing a teacher's answers will cost and save, before it is done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from compress.data.prepared import PreparedSplit
from compress.data.views import view_images
from compress.logit_store import TeacherLogitsManifest
from compress.store_place import free_bytes, missing_bytes
from compress.teacher_pass import TeacherPass
from compress.tensors import as_float_images

MIN_SECONDS = 2.0
MIN_BATCHES = 3


@final
@dataclass(frozen=True)
class StorePlan:
    """A store against the teacher running at every training step."""

    size_bytes: int
    """Of the whole store."""
    missing_bytes: int
    """Of these, not on the disk yet."""
    free_bytes: int
    """Room on the disk where it is written."""
    num_answers: int
    """Views that the store answers."""
    answers_per_second: float
    """Measured: views made and answered."""
    epochs: tuple[int, ...]
    """Epochs of every training run that will read the store."""
    num_images: int
    num_views: int
    """Views of each image in the store."""

    @property
    def fits(self) -> bool:
        """Whether the disk has room."""
        return self.missing_bytes <= self.free_bytes

    @property
    def write_seconds(self) -> float:
        """Time to write the whole store."""
        return self.num_answers / self.answers_per_second

    @property
    def online_seconds(self) -> float:
        """Time that the teacher would take of all training runs together without a store."""
        return sum(self.epochs) * self.num_images / self.answers_per_second

    @property
    def saved_seconds(self) -> float:
        """What the store saves; negative where it costs more than it saves."""
        return self.online_seconds - self.write_seconds

    @property
    def num_views_seen(self) -> int:
        """Views of each image that any run ever reads: epoch e shows view e modulo their number."""
        return min(self.num_views, max(self.epochs, default=0))


def plan_store(
    split: PreparedSplit,
    teacher: TeacherPass,
    manifest: TeacherLogitsManifest,
    *,
    work: Path,
    epochs: Sequence[int],
) -> StorePlan:
    """Measure a few batches, and predict size, time and what training runs of these lengths save. Writes nothing."""
    return StorePlan(
        size_bytes=manifest.size_bytes,
        missing_bytes=missing_bytes(work, manifest),
        free_bytes=free_bytes(work),
        num_answers=manifest.num_rows,
        answers_per_second=_answers_per_second(split, teacher, manifest),
        epochs=tuple(epochs),
        num_images=manifest.shape[1],
        num_views=manifest.shape[0],
    )


def _answers_per_second(split: PreparedSplit, teacher: TeacherPass, manifest: TeacherLogitsManifest) -> float:
    assert manifest.computation is not None
    random, views = np.random.default_rng(0), manifest.views
    batch_size = manifest.computation.batch_size
    started, num_batches = 0.0, -1  # the first batch warms up and does not count
    while num_batches < MIN_BATCHES or time.perf_counter() - started < MIN_SECONDS:
        indices = random.integers(0, manifest.shape[1], batch_size, dtype=np.int64)
        slots = random.integers(0, manifest.shape[0], batch_size, dtype=np.int64)
        images = view_images(split, views.augmentation, indices=indices, slots=slots, seed=views.seed)
        teacher(as_float_images(images, teacher.device)).cpu()
        num_batches += 1
        if num_batches == 0:
            started = time.perf_counter()
    return num_batches * batch_size / (time.perf_counter() - started)
