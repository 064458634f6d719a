"""Exact resume: training states on disk that are whole, ours and current, or not used at all.

A folder belongs to one fingerprint: everything that determines the result. Changed settings, data, teacher or code
give another fingerprint and so another folder; a state of other settings can not be picked up by mistake.
A new state is read back from the disk before anything names it. Then the index file, which names the newest states
with their SHA-256, is replaced; and only then the state before the one before goes. A kill or a loss of power at any
moment leaves at least one whole state behind, at most one interval old.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast, final

import torch

from compress.errors import TrainingError
from compress.files import sync_folder, write_json
from compress.fingerprint import file_sha256

INDEX = "index.json"
NUM_KEPT = 2


@final
class CheckpointFolder:
    """The states of one training run, newest first."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder / fingerprint[:16]
        self.fingerprint = fingerprint

    @contextmanager
    def locked(self) -> Generator[None]:
        """Hold the folder for this process.

        Raises:
            TrainingError: another process is training the same thing, or the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise TrainingError(
                f"cannot keep checkpoints in {self.folder}: {error.strerror}; make the folder writable"
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TrainingError(
                    f"another process is already training this ({self.folder} is locked); "
                    "wait for it, or end it and run again: it continues from its last checkpoint"
                ) from None
            yield

    def save(self, epoch: int, state: dict[str, Any]) -> None:
        """Write the state of a finished epoch, read it back and make it the newest.

        Raises:
            TrainingError: the disk is full or fails; the states before are as they were.
        """
        name = f"epoch_{epoch:05d}.pt"
        temporary = self.folder / f"{name}.tmp"
        try:
            sha256 = _write_synced(temporary, state)
            if file_sha256(temporary) != sha256:
                raise OSError(None, "it reads back other bytes than were written")
            temporary.replace(self.folder / name)
            sync_folder(self.folder)
            entry = {"file": name, "sha256": sha256}
            kept = [entry, *(old for old in self._entries() if old["file"] != name)][:NUM_KEPT]
            write_json(self.folder / INDEX, {"fingerprint": self.fingerprint, "states": kept})
            for path in self.folder.glob("epoch_*"):
                if path.name not in {old["file"] for old in kept}:
                    path.unlink()
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise TrainingError(
                f"the checkpoint of epoch {epoch} cannot be kept in {self.folder}: {error.strerror}; make room or the "
                "folder writable and run again: training goes on from the checkpoint before"
            ) from error

    def load(self) -> dict[str, Any] | None:
        """The newest whole state, or None to start from the beginning."""
        for entry in self._entries():
            path = self.folder / entry["file"]
            if path.is_file() and file_sha256(path) == entry["sha256"]:
                return torch.load(path, map_location="cpu", weights_only=True)
        return None

    def discard(self) -> None:
        """Remove the states once their result is safely stored elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _entries(self) -> list[dict[str, str]]:
        """What the index names; nothing where it is damaged or somebody else's."""
        try:
            index = json.loads((self.folder / INDEX).read_bytes())
        except (OSError, ValueError):
            return []
        match index:
            case {"fingerprint": self.fingerprint, "states": list(states)}:
                return [entry for entry in states if _is_entry(entry)]
            case _:
                return []


def _is_entry(entry: Any) -> bool:
    match entry:
        case {"file": str(name), "sha256": str()}:
            return Path(name).name == name
        case _:
            return False


def _write_synced(path: Path, state: dict[str, Any]) -> str:
    """Write a state through to the disk, out of the cache; the SHA-256 of what should be there.

    Raises:
        OSError: the disk does not take it.
    """
    with path.open("wb") as file:
        hashed = _Hashed(file)
        try:
            torch.save(state, cast(IO[bytes], hashed))
        except RuntimeError:  # torch's writer replaces the exception of the file below it
            if hashed.error is None:
                raise
            raise hashed.error from None
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # so that reading it back asks the disk
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return hashed.sha256


@final
class _Hashed:
    """A file for torch.save that hashes what passes through and remembers why it failed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.error: BaseException | None = None
        """What ended a write: an error of the disk, or Ctrl-C."""

    @property
    def sha256(self) -> str:
        """Of everything written."""
        return self._hash.hexdigest()

    def write(self, content: bytes | memoryview) -> int:
        try:
            self._hash.update(content)
            return self._file.write(content)
        except BaseException as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()
