"""The teacher ready to be asked; which way is fastest is measured once on each machine, and noted.

Times differ from run to run, and with them the last bits of what a store holds and of what students learn. Whatever was
chosen once for a teacher, its settings and this machine is therefore taken again. Remove `.work/teacher_pass` to
measure anew.
"""

from __future__ import annotations

import fcntl
import platform
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import ValidationError
from torch import nn

from compress.files import write_json
from compress.fingerprint import fingerprint
from compress.settings import Settings
from compress.teacher_pass import Backend, ResolvedPrecision, TeacherPass
from compress.teacher_runtime import PassSettings, TimedWay, fastest, prepare_teacher, runtimes
from compress.types import FloatImages
from pipelines.layout import Layout

FOLDER = "teacher_pass"


class NotedWay(Settings):
    """What was chosen on this machine."""

    backend: Backend
    precision: ResolvedPrecision
    measured: tuple[TimedWay, ...]
    """All that could have been chosen."""


class Asked(NamedTuple):
    """A teacher, and how it will be asked."""

    network: nn.Module
    """On the device where it computes."""
    sha256: str
    """Of its weights and card."""
    samples: FloatImages
    """Views on which ways are measured, on the same device."""
    batch_size: int
    threads: int
    """Of the CPU."""


def ready_teacher(layout: Layout, asked: Asked, settings: PassSettings) -> TeacherPass:
    """The teacher in the back-end and precision that settings ask for, or that were chosen here before.

    Raises:
        CompressError: what is asked for is not installed, or not to be had on this device.
        ModelError: its logits are not finite.
    """
    if settings.backend != "auto":
        return prepare_teacher(asked.network, asked.samples, settings, threads=asked.threads)
    path = layout.work(FOLDER) / f"{_key(asked, settings)[:16]}.json"
    # Of several processes one measures: they would slow each other down, and might choose differently.
    with _locked(path.parent), _torch_threads(asked.threads):
        noted = _noted(path)
        if noted is not None:
            chosen = settings.model_copy(update={"backend": noted.backend, "precision": noted.precision})
            return prepare_teacher(asked.network, asked.samples, chosen, threads=asked.threads)
        teacher, ways = fastest(
            asked.network, asked.samples, settings, threads=asked.threads, batch_size=asked.batch_size
        )
        chosen = NotedWay(backend=teacher.backend, precision=teacher.precision, measured=ways)
        write_json(path, chosen.model_dump(mode="json"))
        return teacher


def _noted(path: Path) -> NotedWay | None:
    """What was chosen before; None where nothing readable is noted."""
    try:
        return NotedWay.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _key(asked: Asked, settings: PassSettings) -> str:
    """Of all that decides which way is the fastest."""
    device = asked.samples.device
    return fingerprint(
        {
            "teacher": asked.sha256,
            "settings": settings.model_dump(mode="json"),
            "image_size": list(asked.samples.shape[2:]),
            "batch_size": asked.batch_size,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
            "threads": asked.threads,
            "runtimes": list(runtimes()),
        }
    )


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    models = sorted({line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "flags"))})
    return "; ".join(models) or platform.processor()


@contextmanager
def _torch_threads(number: int) -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
