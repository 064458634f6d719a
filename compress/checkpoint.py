"""Exact resume: training states on disk that are whole, ours and current, or not used at all.

A folder belongs to one fingerprint: everything that determines the result. Changed settings, data, teacher or code
give another fingerprint and so another folder; a state of other settings can not be picked up by mistake.
The index file names the newest states with their SHA-256. It is replaced last, and the state before the newest is
kept, so that a kill at any moment leaves at least one whole state behind.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch

from compress.errors import TrainingError
from compress.files import write_json
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
            TrainingError: another process is training the same thing.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TrainingError(
                    f"another process is already training this ({self.folder} is locked); "
                    "wait for it, or end it and run again: it continues from its last checkpoint"
                ) from None
            yield

    def save(self, epoch: int, state: dict[str, Any]) -> None:
        """Write the state of a finished epoch and make it the newest."""
        name = f"epoch_{epoch:05d}.pt"
        temporary = self.folder / f"{name}.tmp"
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        entry = {"file": name, "sha256": file_sha256(temporary)}
        temporary.replace(self.folder / name)
        kept = [entry, *(old for old in self._entries() if old["file"] != name)][:NUM_KEPT]
        write_json(self.folder / INDEX, {"fingerprint": self.fingerprint, "states": kept})
        for path in self.folder.glob("epoch_*"):
            if path.name not in {old["file"] for old in kept}:
                path.unlink()

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
        try:
            index = json.loads((self.folder / INDEX).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return []
        return index["states"] if index.get("fingerprint") == self.fingerprint else []
