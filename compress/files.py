"""Files between stages: whole or not there, and named when they are missing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from compress.errors import ArtifactError


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file so that a reader, or a machine that lost power, sees the old content or the new, never a part.

    Folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Always the same name, so that the next writer clears up after a killed one.
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file, as `write_whole` does."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(path, f"{text}\n".encode())


def read_json(path: Path, *, made_by: str) -> Any:
    """A JSON file that the stage `made_by` wrote.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; run the {made_by} stage first") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); run the {made_by} stage again") from error
