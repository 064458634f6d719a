"""Files between stages: whole or not there, and named when they are missing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, final

from compress.errors import ArtifactError

SEAL = "record_sha256"
"""Key under which a record keeps its own hash."""


@contextmanager
def replaced_whole(path: Path) -> Generator[IO[bytes]]:
    """A file that takes the place of `path` when the context ends without an error, and leaves nothing behind else.

    A reader, or a machine that lost power, sees the old content or the new, never a part. Folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Always the same name, so that the next writer clears up after a killed one.
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a write that fails does not know of what
        raise
    sync_folder(path.parent)


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file, as `replaced_whole` does."""
    with replaced_whole(path) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file, as `replaced_whole` does."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(path, f"{text}\n".encode())


def sync_folder(folder: Path) -> None:
    """Let the names in a folder survive a loss of power: a file's own sync does not cover the name it was given."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_record(path: Path, value: dict[str, Any]) -> None:
    """Replace a JSON file by one that holds its own hash, by which `read_json` finds out any change."""
    unsealed = {key: each for key, each in value.items() if key != SEAL}
    as_read = json.loads(json.dumps(unsealed, allow_nan=False))
    write_json(path, {**unsealed, SEAL: _seal(as_read)})


def read_json(path: Path, *, made_by: str) -> dict[str, Any]:
    """A JSON object that the stage `made_by` wrote; asking it for a key that it lacks is an ArtifactError too.

    Raises:
        ArtifactError: it is missing or damaged, or was changed after `write_record` wrote it.
    """
    again = f"run the {made_by} stage again"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; run the {made_by} stage first") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); {again}") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} holds a {type(value).__name__}, not what was written there; {again}")
    if value.pop(SEAL, None) not in (None, _seal(value)):
        raise ArtifactError(f"{path} was changed after it was written: its SHA-256 does not fit; {again}")
    return _Record(value, path, made_by)


def check_sha256(path: Path, sha256: str, *, made_by: str) -> None:
    """Hold a file that the stage `made_by` wrote against the hash that was noted of it.

    Raises:
        ArtifactError: it is missing, or another file.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}); run the {made_by} stage again") from error
    if found != sha256:
        raise ArtifactError(f"{path} is not the file that was written (SHA-256 differs); run the {made_by} stage again")


def check_files(folder: Path, record: Mapping[str, Any], *, made_by: str) -> None:
    """Hold the files of a folder against the hashes that a record keeps of them.

    Raises:
        ArtifactError: one is missing, or another file.
    """
    for name, sha256 in record["hashes"].items():
        check_sha256(folder / name, sha256, made_by=made_by)


def _seal(value: dict[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


@final
class _Record(dict[str, Any]):
    """A JSON object that explains what is wrong with a file that lacks a key."""

    def __init__(self, value: dict[str, Any], path: Path, made_by: str) -> None:
        super().__init__(value)
        self._path, self._made_by = path, made_by

    def __missing__(self, key: str) -> Any:
        raise ArtifactError(
            f"{self._path} has no {key!r}: it is not what the {self._made_by} stage writes; run that stage again"
        )
