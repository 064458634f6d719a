"""Sections of a benchmark that fail on their own: one JSON file, written anew after each of them."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

Section = Callable[[float], dict[str, Any]]
"""Given the seconds that it may take, measures and returns figures."""


@final
class Report:
    """The figures so far, and the time that is left."""

    def __init__(self, path: Path, *, seconds: float, facts: Mapping[str, Any]) -> None:
        self.path = path
        self._deadline = time.monotonic() + seconds
        self.content: dict[str, Any] = {**facts, "sections": {}}

    @property
    def seconds_left(self) -> float:
        """Until the whole run should be over."""
        return self._deadline - time.monotonic()

    def add(self, name: str, section: Section, *, seconds: float) -> None:
        """Run a section with a share of what is left, and write down what it gave or why it gave nothing."""
        started = time.monotonic()
        allowed = min(seconds, self.seconds_left)
        if allowed <= 0:
            found: dict[str, Any] = {"skipped": "no time was left"}
        else:
            found = _protected(section, allowed)
        found["section_seconds"] = round(time.monotonic() - started, 1)
        self.content["sections"][name] = found
        self._write()
        print(f"{name}: {_line(found)}", flush=True)

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.content, indent=2) + "\n")


def _protected(section: Section, seconds: float) -> dict[str, Any]:
    try:
        return section(seconds)
    except Exception as error:  # the others shall run; the file says what happened
        lines = traceback.format_exception(error)
        return {"error": f"{type(error).__name__}: {error}", "traceback": "".join(lines)[-3000:]}


def _line(found: Mapping[str, Any]) -> str:
    short = {key: value for key, value in found.items() if key != "traceback"}
    text = json.dumps(short)
    return text if len(text) <= 600 else text[:600] + " …"
