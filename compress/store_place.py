"""Where a store goes: room for it on the disk, and the move into its place."""

from __future__ import annotations

import shutil
from pathlib import Path

from compress.errors import ArtifactError
from compress.logit_store import LOGITS, TeacherLogitsManifest


def check_room(work: Path, folder: Path, manifest: TeacherLogitsManifest) -> None:
    """Raise ArtifactError if a store will not fit where it is written, or where it goes."""
    missing = missing_bytes(work, manifest)
    if _disk_of(work) != _disk_of(folder):
        _check_free(_existing(folder), manifest.size_bytes)
    _check_free(_existing(work), missing)


def missing_bytes(work: Path, manifest: TeacherLogitsManifest) -> int:
    """Bytes that a store still needs on the disk of `work`."""
    rows = work / LOGITS
    present = rows.stat().st_blocks * 512 if rows.is_file() else 0  # the file has holes: its length says nothing
    return max(manifest.size_bytes - present, 0)


def free_bytes(folder: Path) -> int:
    """Room on the disk where a folder is, or will be."""
    return shutil.disk_usage(_existing(folder)).free


def _check_free(folder: Path, needed: int) -> None:
    free = free_bytes(folder)
    if needed > free:
        raise ArtifactError(
            f"the teacher's logits need {needed / 1e6:.1f} MB more on the disk of {folder}, {free / 1e6:.1f} MB are "
            "free; make room, set teacher_logits.dtype: uint8, or lower views.views_per_image"
        )


def _existing(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def _disk_of(path: Path) -> int:
    return _existing(path).stat().st_dev


def move_into_place(work: Path, folder: Path) -> None:
    """Put a finished store in its place; on another disk it is copied beside it first."""
    arriving, previous = (folder.with_name(f".{folder.name}.{word}") for word in ("arriving", "previous"))
    for leftover in (arriving, previous):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if is_elsewhere := _disk_of(work) != _disk_of(folder.parent):
        shutil.copytree(work, arriving)
    if folder.exists():
        folder.rename(previous)
    (arriving if is_elsewhere else work).rename(folder)
    shutil.rmtree(previous, ignore_errors=True)
    if is_elsewhere:
        shutil.rmtree(work)
