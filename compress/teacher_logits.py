"""The teacher's answers: asked while training, or written once for every view and shared by all students.

A store is a folder: logits.npy, shape (V, N, C), for slot v of image n, and manifest.json, which says whose answers
they are: teacher, data, views, type and SHA-256. Logits are stored, never probabilities: those underflow.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, final

import numpy as np
import torch
from torch import nn

from compress.data.prepared import PreparedSplit
from compress.data.view_schedule import ViewSettings
from compress.data.views import view_images
from compress.device import DeviceName
from compress.errors import ArtifactError, ModelError
from compress.files import write_json
from compress.fingerprint import file_sha256
from compress.models import Network
from compress.settings import PositiveInt, Settings
from compress.tensors import as_float_images
from compress.types import Answer, FloatImages, IndexArray, Logits

FORMAT_VERSION = 1
MANIFEST, LOGITS = "manifest.json", "logits.npy"


class TeacherLogitsSettings(Settings):
    """Whether and how the teacher's answers are stored."""

    enabled: bool = True
    """Write the answers once and share them; off: the teacher runs at every training step."""
    dtype: Literal["float16", "float32"] = "float16"
    """Stored type. float16 halves the size; its measured error is in the manifest."""
    batch_size: PositiveInt = 256
    """Images per forward pass of the teacher."""
    device: DeviceName = "auto"
    threads: PositiveInt | None = None
    """CPU threads of the teacher's pass; by default all cores."""


class TeacherLogitsManifest(Settings):
    """Whose answers a store holds, and how exactly."""

    format_version: Literal[1] = FORMAT_VERSION
    enabled: bool
    teacher_sha256: str
    data_fingerprint: str
    views: ViewSettings
    dtype: Literal["float16", "float32"]
    shape: tuple[int, int, int]
    """Views, images, classes; zeros when the store is switched off."""
    max_abs_error: float
    """Largest difference between a stored logit and the float32 one."""
    sha256: str
    """Of logits.npy; empty when the store is switched off."""


class TeacherAnswers(ABC):
    """Logits of the teacher for a batch of views."""

    @abstractmethod
    def logits(self, images: FloatImages, indices: IndexArray, slots: IndexArray) -> Logits:
        """The answers for views `slots` of the train images `indices`, whose pixels are `images`; on their device."""


@final
class OnlineTeacher(TeacherAnswers):
    """Runs the network at every step. The network is frozen and put in evaluation mode, for good."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network.eval().requires_grad_(False)

    @torch.no_grad()
    def logits(self, images: FloatImages, indices: IndexArray, slots: IndexArray) -> Logits:
        self._check()
        return self._network(images)

    @torch.no_grad()
    def answer(self, images: FloatImages) -> Answer:
        """Logits and features of images, for methods that compare features.

        Raises:
            ModelError: the network has no interface to its features.
        """
        self._check()
        assert isinstance(self._network, Network)
        return self._network.answer(images)

    def _check(self) -> None:
        assert not self._network.training, "a teacher in training mode uses and changes batch statistics"


@final
class StoredTeacher(TeacherAnswers):
    """Reads the answers that `write_teacher_logits` stored."""

    def __init__(self, logits: np.ndarray) -> None:
        self._logits = logits

    def logits(self, images: FloatImages, indices: IndexArray, slots: IndexArray) -> Logits:
        rows = np.asarray(self._logits[slots, indices], dtype=np.float32)
        return torch.from_numpy(rows).to(images.device)


def write_teacher_logits(
    folder: Path, split: PreparedSplit, network: nn.Module, *, manifest: TeacherLogitsManifest, batch_size: int
) -> Iterator[int]:
    """Ask the teacher about every view of every image of a split and store the answers; yields images done so far.

    `manifest` says whose answers these are; error and hash are filled in here. The folder appears when it is whole.

    Raises:
        ModelError: the teacher's logits are not finite, or too large for float16.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    store = np.lib.format.open_memmap(partial / LOGITS, mode="w+", dtype=manifest.dtype, shape=manifest.shape)
    teacher, max_abs_error, num_done = OnlineTeacher(network), 0.0, 0
    device = next(network.parameters()).device
    for slot in range(manifest.shape[0]):
        for start in range(0, len(split), batch_size):
            indices = np.arange(start, min(start + batch_size, len(split)), dtype=np.int64)
            slots = np.full(len(indices), slot, dtype=np.int64)
            views = view_images(
                split, manifest.views.augmentation, indices=indices, slots=slots, seed=manifest.views.seed
            )
            answers = teacher.logits(as_float_images(views, device), indices, slots).float().cpu().numpy()
            stored = _stored(answers, manifest.dtype)
            store[slot, start : start + len(indices)] = stored
            max_abs_error = max(max_abs_error, float(np.abs(stored.astype(np.float32) - answers).max()))
            num_done += len(indices)
            yield num_done
    store.flush()
    del store
    finished = manifest.model_copy(update={"max_abs_error": max_abs_error, "sha256": file_sha256(partial / LOGITS)})
    write_json(partial / MANIFEST, finished.model_dump(mode="json"))
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def write_switched_off(folder: Path, manifest: TeacherLogitsManifest) -> None:
    """Leave only a manifest that says that the teacher runs online."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))


def read_manifest(folder: Path) -> TeacherLogitsManifest:
    """The manifest of a store.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    path = folder / MANIFEST
    try:
        return TeacherLogitsManifest.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"no teacher logits in {folder}: {path.name} is missing or damaged; run the teacher_logits stage"
        ) from error


def open_teacher_logits(folder: Path, expected: TeacherLogitsManifest) -> StoredTeacher:
    """Map a store into memory after checking that it is whole and holds the expected answers.

    Raises:
        ArtifactError: it is missing, cut off, changed, or of another teacher, data set or view schedule.
    """
    manifest = read_manifest(folder)
    for field in ("enabled", "teacher_sha256", "data_fingerprint", "views", "dtype", "shape"):
        if getattr(manifest, field) != getattr(expected, field):
            raise ArtifactError(
                f"teacher logits in {folder} have another {field}: {getattr(manifest, field)}, "
                f"expected {getattr(expected, field)}; run the teacher_logits stage again"
            )
    path = folder / LOGITS
    if not path.is_file() or file_sha256(path) != manifest.sha256:
        raise ArtifactError(f"{path} is missing or not the file that was written; run the teacher_logits stage again")
    return StoredTeacher(np.load(path, mmap_mode="r", allow_pickle=False))


def _stored(answers: np.ndarray, dtype: str) -> np.ndarray:
    if not np.isfinite(answers).all():
        raise ModelError("the teacher gives logits that are not finite; check its weights and normalisation")
    with np.errstate(over="ignore"):
        stored = answers.astype(dtype)
    if not np.isfinite(stored).all():
        raise ModelError(
            f"the teacher's logits reach {np.abs(answers).max():.3g}, more than float16 holds; "
            "set teacher_logits.dtype: float32"
        )
    return stored


__all__ = [
    "OnlineTeacher",
    "StoredTeacher",
    "TeacherAnswers",
    "TeacherLogitsManifest",
    "TeacherLogitsSettings",
    "open_teacher_logits",
    "read_manifest",
    "write_switched_off",
    "write_teacher_logits",
]
