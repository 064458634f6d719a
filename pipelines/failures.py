"""What the machine refuses, in one line that says what to do: a full disk, a folder that may not be written, memory."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

AGAIN: Final = "then run the same command again: what was finished is kept"
ADVICE: Final[Mapping[int, str]] = MappingProxyType(
    {
        errno.ENOSPC: f"make room on that disk, {AGAIN}",
        errno.EDQUOT: f"free some of your quota on that disk, {AGAIN}",
        errno.EFBIG: f"raise the limit on the size of files (ulimit -f), {AGAIN}",
        errno.EROFS: "that disk is mounted read-only; mount it writable, or work in another folder",
        errno.EACCES: "change its permissions, or work in another folder",
        errno.EPERM: "change its permissions, or work in another folder",
        errno.EMFILE: f"raise the limit on open files (ulimit -n), {AGAIN}",
        errno.EIO: f"look after the disk, {AGAIN}",
        errno.ENOENT: f"it was removed meanwhile; {AGAIN[5:]}",
    }
)
SMALLER: Final[Mapping[str, str]] = MappingProxyType(
    {
        "teacher": "set teacher.train.micro_batch_size, which takes a batch in pieces and gives the same gradients",
        "teacher-logits": "lower teacher_logits.batch_size",
        "distill": "set train.micro_batch_size of the row, which takes a batch in pieces and gives the same gradients",
        "evaluate": "lower evaluate.batch_size",
    }
)
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "failed to allocate memory", "bad allocation")


def one_line(problem: BaseException, *, command: str = "") -> str:
    """A failure and what to do about it; `command` is the one that was running."""
    if isinstance(problem, OSError) and problem.strerror:
        where = f": {problem.filename}" if problem.filename else ""
        advice = ADVICE.get(problem.errno or 0)
        return f"{problem.strerror}{where}" + (f"; {advice}" if advice else "")
    if is_out_of_memory(problem):
        cure = SMALLER.get(command, "use a smaller batch")
        return f"{_memory_of(problem)} ran out; {cure}, or free memory, and run the same command again"
    return " ".join(str(problem).split())


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether memory is what was lacking: torch has an exception of its own for GPUs and none for CPUs."""
    if isinstance(problem, MemoryError):
        return True
    text = str(problem).lower()
    return isinstance(problem, Exception) and any(words in text for words in OUT_OF_MEMORY)


def _memory_of(problem: BaseException) -> str:
    return "the GPU's memory" if "cuda" in str(problem).lower() else "memory"
