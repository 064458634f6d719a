"""What a finished stage keeps until a later stage has read its outputs: by then DVC has recorded them.

Between a stage's last write and the moment when DVC notes it in dvc.lock the machine may stop. DVC then deletes the
outputs and runs the stage again; from what is kept here it ends at once, with the same bytes, instead of computing
for hours what was there already.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from compress.errors import ArtifactError
from compress.files import read_json, write_json
from pipelines.layout import Layout

MARK = "finished.json"
KEPT = "finished"
TRAINING = ("teacher", "distill")


def keep_training(work: Path, name: str) -> None:
    """Mark a training's folder of checkpoints as done with."""
    write_json(work / MARK, {"name": name})


def drop_training(layout: Layout, name: str) -> None:
    """Remove the checkpoints of a network whose training has been recorded."""
    for stage in TRAINING:
        for mark in layout.work(stage).glob(f"*/{MARK}"):
            if _name_in(mark) == name:
                shutil.rmtree(mark.parent, ignore_errors=True)


def _name_in(mark: Path) -> str | None:
    try:
        return read_json(mark, made_by="training")["name"]
    except (ArtifactError, KeyError, TypeError):
        return None


def keep_store(work: Path) -> None:
    """Give the files of a store that is all written second names, which cost no room on the disk."""
    kept = _kept(work)
    shutil.rmtree(kept, ignore_errors=True)
    arriving = kept.with_name(f"{kept.name}.arriving")
    shutil.rmtree(arriving, ignore_errors=True)
    arriving.mkdir()
    for path in work.iterdir():
        try:
            os.link(path, arriving / path.name)
        except OSError:  # a file system without hard links: DVC may then have to run the stage again
            shutil.rmtree(arriving, ignore_errors=True)
            return
    arriving.rename(kept)


def take_store_back(work: Path) -> bool:
    """Put a kept store where it was written, if nothing newer is there; whether it was."""
    kept = _kept(work)
    if work.exists() or not kept.exists():
        return False
    kept.rename(work)
    return True


def drop_store(layout: Layout) -> None:
    """Remove a kept store: DVC has recorded it."""
    shutil.rmtree(layout.work("teacher_logits") / KEPT, ignore_errors=True)


def _kept(work: Path) -> Path:
    return work.with_name(KEPT)
