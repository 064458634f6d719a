"""Stage prepare_names: refuse names of students that lead out of their folders, before DVC makes paths of them.

DVC takes the names from params.yaml, and empties the folders that a stage will fill before the stage can look at
anything: of a student named ../pictures it would delete the pictures. All training stages depend on this one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compress.errors import ParamsError
from compress.files import write_json
from compress.settings import Settings
from pipelines.layout import SLUG, Layout
from pipelines.params import load_params


class PrepareNamesParams(Settings):
    """Sections that this stage reads."""

    students: dict[str, dict[str, Any] | None]


def run(root: Path) -> None:
    """Leave a note, always the same one, so that a new name reruns nothing but its own student.

    Raises:
        ParamsError: a name is more than lower-case letters, digits and _.
    """
    layout = Layout(root)
    students = load_params(PrepareNamesParams, layout.params).students
    for group, rows in students.items():
        for name in rows or {}:
            if not SLUG.fullmatch(name):
                raise ParamsError(
                    f"{layout.params.name}: students.{group}: {name!r} cannot name a student; use lower-case letters, "
                    "digits and _"
                )
    write_json(layout.student_names, {"names": "lower-case letters, digits and _"})
