"""After a kill: DVC's own bookkeeping, which it writes in place, made readable again.

A DVC that was killed while it wrote one of these files refuses every later command until somebody deletes it by hand.
Nothing is lost with them: without its entry in dvc.lock a stage whose inputs are the same comes back from DVC's run
cache, and locks of processes that are gone protect nothing. Killed while it put an output in its place, it also leaves
a copy of it there under a name of its own.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from compress.errors import CompressError, ParamsError
from pipelines.params import read_yaml

RWLOCK = ".dvc/tmp/rwlock"
LOCK = "dvc.lock"
OUTPUTS = ("data", "models", "exports", "results", "metrics", "reports", "deploy")
HALF_WRITTEN = re.compile(r"\.[\w-]{22}\.tmp")
"""Names that dvc-objects makes: 16 random bytes in base 64."""


class BusyError(CompressError):
    """DVC is at work here."""


def recover(root: Path) -> list[str]:
    """Set aside what DVC could not read any more, and clear up; says what was done, nothing where all is well.

    Raises:
        BusyError: a DVC command is running in this project.
    """
    damaged = [name for name, reads in _READERS.items() if (root / name).exists() and not reads(root / name)]
    copies = sorted(_half_written(root))
    if not damaged and not copies:
        return []
    _require_idle(root)
    told: list[str] = []
    for path in copies:
        path.unlink(missing_ok=True)
        told.append(f"{path.relative_to(root)} was left by a killed DVC; it is removed")
    for name in damaged:
        kept = _set_aside(root / name)
        told.append(f"{name} was damaged by a killed DVC; it is kept as {kept.name}, and DVC makes a new one")
    return told


def run(root: Path) -> None:
    """Do so and tell."""
    for line in recover(root):
        print(f"recover: {line}")


def _half_written(root: Path) -> Iterator[Path]:
    """Files below the folders of outputs that have the name under which DVC writes before it renames."""
    for folder in OUTPUTS:
        yield from (path for path in (root / folder).rglob(".*.tmp") if HALF_WRITTEN.fullmatch(path.name))


def _set_aside(path: Path) -> Path:
    kept = path.with_name(f"{path.name}.damaged")
    path.replace(kept)
    return kept


def _is_rwlock(path: Path) -> bool:
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(value, dict) and value.keys() <= {"read", "write"}


def _is_dvc_lock(path: Path) -> bool:
    """Whether DVC's parser reads it and finds what it writes: a cut file can still be well-formed YAML."""
    try:
        value = read_yaml(path)
    except ParamsError:
        return False
    if value.get("schema") != "2.0":
        return False
    stages = value.get("stages", {})
    return isinstance(stages, dict) and all(_is_entry(entry) for entry in stages.values())


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not entry.get("cmd"):
        return False
    listed = [each for key in ("deps", "outs") for each in entry.get(key) or []]
    return all(isinstance(each, dict) and {"path", "hash", "md5"} <= each.keys() for each in listed)


_READERS: dict[str, Callable[[Path], bool]] = {RWLOCK: _is_rwlock, LOCK: _is_dvc_lock}


def _require_idle(root: Path) -> None:
    """Raise where DVC holds its lock: a file that is being written is not a damaged one."""
    path = root / ".dvc" / "tmp" / "lock"
    if not path.exists():
        return
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError("DVC is at work in this project; wait for it, then recover") from None
