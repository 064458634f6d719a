"""One hash for everything that determines a result."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import JsonValue


def fingerprint(parts: dict[str, JsonValue]) -> str:
    """SHA-256 of the parts as canonical JSON; the order of keys does not matter, every value does."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint_of_files(paths: Iterable[Path]) -> str:
    """SHA-256 over the contents of files and their places below the folder that holds them all."""
    parents = {path: path.parent for path in paths}
    common = Path(os.path.commonpath(parents.values()))
    return fingerprint({path.relative_to(common).as_posix(): file_sha256(path) for path in parents})


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
