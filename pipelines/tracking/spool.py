"""Events that wait in files for a store that is away, one file per run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import final

from pipelines.tracking.events import Event
from pipelines.tracking.store import locked, spool_folder


@final
class Spool:
    """The waiting events of one project."""

    def __init__(self, root: Path) -> None:
        self._folder = spool_folder(root)

    @property
    def _lock(self) -> Path:
        return self._folder / ".lock"

    def append(self, run_id: str, event: Event) -> None:
        """Add one event to a run's file.

        Raises:
            OSError: the file cannot be written.
        """
        line = f"{json.dumps(event)}\n".encode()
        with locked(self._lock), self._file(run_id).open("ab+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                # A process that was killed within its line must not take the next event with it.
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)

    def waiting(self) -> list[str]:
        """Ids of the runs with waiting events."""
        return sorted({path.stem for pattern in ("*.jsonl", "*.sending") for path in self._folder.glob(pattern)})

    def drain(self, run_id: str, send: Callable[[Event], None]) -> None:
        """Hand a run's events to `send`, in order; what was sent leaves the disk.

        When `send` raises, its event and the ones behind it stay. The run may go on writing meanwhile.
        """
        lines = self._take(run_id)
        done = 0
        try:
            for line in lines:
                event = _parsed(line)
                if event is not None:
                    send(event)
                done += 1
        finally:
            _replace(self._file(run_id).with_suffix(".sending"), lines[done:])

    def _take(self, run_id: str) -> list[str]:
        """Move the run's events aside, behind those that an interrupted delivery has left."""
        waiting, sending = self._file(run_id), self._file(run_id).with_suffix(".sending")
        with locked(self._lock):
            files = [path for path in (sending, waiting) if path.exists()]
            lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
            _replace(sending, lines)
            waiting.unlink(missing_ok=True)
        return lines

    def _file(self, run_id: str) -> Path:
        return self._folder / f"{run_id}.jsonl"


def _parsed(line: str) -> Event | None:
    """The event of a line; None for one that a killed process left half written."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _replace(path: Path, lines: list[str]) -> None:
    if not lines:
        path.unlink(missing_ok=True)
        return
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    temporary.replace(path)
