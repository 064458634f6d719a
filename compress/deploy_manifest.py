"""What a deploy folder holds, written down so that any change is found out: manifest.json.

    {"format_version": 1, "files": {"model.onnx": {"size_bytes": 1234, "sha256": "…"}, …}}

Every file below the folder except manifest.json itself, by its name relative to the folder. It finds accidents and
careless changes by itself; against somebody who rewrites the manifest too, keep its own SHA-256 elsewhere and hand it
to `read_verified`. Needs nothing beside the standard library.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from compress.errors import ArtifactError
from compress.files import write_json

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
CURE = "deploy the folder again"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NUM_NAMED = 5


class FileRecord(NamedTuple):
    """What is written down of one file."""

    size_bytes: int
    sha256: str


def write_manifest(folder: Path) -> str:
    """Write down every file of a finished deploy folder; the same files give the same bytes.

    Returns:
        SHA-256 of the manifest, by which whoever uses the folder can tell that it is this one.

    Raises:
        ArtifactError: the folder is missing or holds something that is no file.
    """
    records = {name: _record((folder / name).read_bytes()) for name in _file_names(folder)}
    files = {name: record._asdict() for name, record in records.items()}
    write_json(folder / MANIFEST, {"format_version": FORMAT_VERSION, "files": files})
    return _record((folder / MANIFEST).read_bytes()).sha256


def read_verified(folder: Path, *, keep: Collection[str], manifest_sha256: str | None = None) -> dict[str, bytes]:
    """Check every file against the manifest and return the contents of those in `keep`: the bytes that were hashed.

    Raises:
        ArtifactError: a file is missing, changed or not in the manifest, or the manifest is not the one whose SHA-256
            was given.
    """
    content = _read(folder, MANIFEST)
    if manifest_sha256 is not None and _record(content).sha256 != manifest_sha256.lower():
        raise ArtifactError(f"{folder / MANIFEST} is not the one with SHA-256 {manifest_sha256}; {CURE}")
    records = _parse(folder / MANIFEST, content)
    _compare_names(folder, listed=set(records), found=set(_file_names(folder)))
    _require(folder, keep, records)
    kept: dict[str, bytes] = {}
    for name, record in records.items():
        file_content = _read_checked(folder, name, record)
        if name in keep:
            kept[name] = file_content
    return kept


def _read_checked(folder: Path, name: str, record: FileRecord) -> bytes:
    size = (folder / name).stat().st_size
    if size != record.size_bytes:
        raise ArtifactError(f"{folder / name} was changed: {size} bytes, the manifest says {record.size_bytes}; {CURE}")
    content = _read(folder, name)
    if _record(content) != record:
        raise ArtifactError(f"{folder / name} was changed: its SHA-256 is not the one in the manifest; {CURE}")
    return content


def _record(content: bytes) -> FileRecord:
    return FileRecord(len(content), hashlib.sha256(content).hexdigest())


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder / name} is missing; {CURE}") from error
    except OSError as error:
        raise ArtifactError(f"{folder / name} cannot be read: {error.strerror}; make it a readable file") from error


def _file_names(folder: Path) -> list[str]:
    """Names of all files below the folder but the manifest, sorted.

    A link to a file counts as the file (DVC and container platforms make such links); its content is what is hashed.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is no folder; name the one that the select stage wrote")
    names: list[str] = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        if not path.is_file():
            raise ArtifactError(f"{path} is neither a file nor a folder; remove it")
        names.append(path.relative_to(folder).as_posix())
    return [name for name in names if name != MANIFEST]


def _parse(path: Path, content: bytes) -> dict[str, FileRecord]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: no JSON; {CURE}") from error
    match value:
        case {"format_version": 1, "files": dict(files)} if all(_is_record(entry) for entry in files.values()):
            return {str(name): FileRecord(**entry) for name, entry in files.items()}
        case _:
            raise ArtifactError(f"{path} is damaged or of another version; {CURE}")


def _is_record(entry: Any) -> bool:
    match entry:
        case {"size_bytes": int(), "sha256": str(sha256), **others} if not others:
            return _SHA256.fullmatch(sha256) is not None
        case _:
            return False


def _compare_names(folder: Path, *, listed: set[str], found: set[str]) -> None:
    for names, problem in ((listed - found, "is missing"), (found - listed, "is not in the manifest")):
        if names:
            named = ", ".join(sorted(names)[:_NUM_NAMED])
            more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
            raise ArtifactError(f"{folder} is not the folder that was written: {named}{more} {problem}; {CURE}")


def _require(folder: Path, names: Collection[str], records: dict[str, FileRecord]) -> None:
    for name in names:
        if name not in records:
            raise ArtifactError(f"{folder / name} is missing, and so it is in the manifest; {CURE}")
