"""A pipeline without a teacher: its teacher's stages leave a note in place of what they would have made.

DVC wants every output of a stage, and later stages name the teacher's outputs among their dependencies.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from compress.files import write_json

NOTE = "no_teacher.json"


def leave_note(folder: Path) -> None:
    """Replace a folder by one that says that there is no teacher."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(folder / NOTE, {"teacher": None, "because": "params.yaml says teacher: null"})


def is_absent(folder: Path) -> bool:
    """Whether an earlier stage left a note instead of the teacher's files in a folder."""
    return (folder / NOTE).is_file()
