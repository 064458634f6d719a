"""A tiny teacher's stored answers, and ways to damage them."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.data.view_schedule import ViewSettings
from compress.logit_store import LOGITS, TeacherLogitsManifest, hash_of_chunk, read_manifest, write_manifest
from compress.teacher_logits import StoredTeacher, TeacherLogitsSettings, open_teacher_logits
from compress.teacher_logits_writer import Question, new_manifest, sample_views, write_teacher_logits
from compress.teacher_pass import PassPrecision, TeacherPass, prepare_pass
from tests.compress import toy

CPU = torch.device("cpu")
NUM_ROWS = 4 * 26
TEACHER, DATA = "a" * 64, "d" * 64


def network(seed: int = 7, *, scale: float = 10.0) -> nn.Module:
    """The tiny network as if trained: batch statistics that are not those of a new one, logits far from each other."""
    made = toy.network(seed)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        made[1].running_mean.normal_()  # type: ignore[index, union-attr]
        made[1].running_var.uniform_(0.5, 2.0)  # type: ignore[index, union-attr]
        made[1].weight.uniform_(0.5, 2.0)  # type: ignore[index, union-attr]
        made[-1].weight.mul_(scale)  # type: ignore[index, union-attr]
    return made


def teacher(seed: int = 7, *, scale: float = 10.0, precision: PassPrecision = "float32") -> TeacherPass:
    """It, ready to be asked."""
    images = sample_views(toy.data().train, toy.VIEWS, num_samples=16, device=CPU)
    return prepare_pass(network(seed, scale=scale), images, precision=precision)


def settings(**changes: Any) -> TeacherLogitsSettings:
    """Chunks of ten views, so that there are eleven, the last with four; batches of four."""
    return TeacherLogitsSettings(**{"dtype": "float32", "rows_per_chunk": 10, "batch_size": 4} | changes)


def question(views: ViewSettings = toy.VIEWS) -> Question:
    """What the toy store answers."""
    return Question(TEACHER, DATA, views, num_images=26, num_classes=toy.NUM_CLASSES)


def planned(asked: TeacherPass | None = None, **changes: Any) -> TeacherLogitsManifest:
    """The manifest of a toy store that is to be written."""
    return new_manifest(settings(**changes), question(), asked or teacher())


def write(folder: Path, *, scale: float = 10.0, **changes: Any) -> TeacherLogitsManifest:
    """Write a toy store."""
    asked = teacher(scale=scale)
    counts = list(write_teacher_logits(folder, toy.data().train, asked, manifest=planned(asked, **changes)))
    assert counts[-1] == NUM_ROWS
    return read_manifest(folder)


def opened(folder: Path) -> StoredTeacher:
    """A store as what it says it is."""
    return open_teacher_logits(folder, read_manifest(folder))


def forge(folder: Path, rows: bytes | None = None, **changes: Any) -> None:
    """Change a store so that all of its hashes fit: what only the teacher can tell from the true one."""
    manifest = read_manifest(folder).model_copy(update=changes)
    if rows is not None:
        (folder / LOGITS).write_bytes(manifest.header + rows)
    hashes = tuple(hash_of_chunk(folder / LOGITS, manifest, chunk) for chunk in range(manifest.num_chunks))
    write_manifest(folder, manifest.model_copy(update={"chunk_sha256": hashes}))
