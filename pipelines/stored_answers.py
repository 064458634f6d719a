"""The stored answers of this project's teacher, for a student: checked by hash, and against the teacher if it is here.

A student needs neither the teacher's weights nor its card: the store's manifest says whose answers they are.
"""

from __future__ import annotations

from pathlib import Path

import torch

from compress.artifact import load_card, load_model
from compress.data.prepared import PreparedData
from compress.data.view_schedule import ViewSettings
from compress.device import place
from compress.models.checkpoint import CARD_FILE, WEIGHTS_FILE
from compress.teacher_logits import StoredTeacher, open_teacher_logits, read_manifest, verify_against_teacher
from pipelines.finished_work import drop_store
from pipelines.layout import Layout


def stored_answers(layout: Layout, data: PreparedData, views: ViewSettings, *, device: torch.device) -> StoredTeacher:
    """Open the store, verify every row by hash and a random sample by asking the teacher, and say what was verified.

    Raises:
        ArtifactError: the store is missing, damaged or of something else, or the teacher answers otherwise.
    """
    folder = layout.teacher_logits
    stated = read_manifest(folder)
    expected = stated.expecting(
        data_fingerprint=data.manifest.fingerprint, views=views, teacher_sha256=_sha256_of_teacher(layout.teacher)
    )
    store = open_teacher_logits(folder, expected)
    drop_store(layout)
    if not (layout.teacher / WEIGHTS_FILE).is_file():
        print(f"teacher logits: verified by hash alone; the teacher's weights are not in {layout.teacher}", flush=True)
        return store
    network, _ = load_model(layout.teacher)
    difference = verify_against_teacher(store, data.split("train"), place(network, device))
    print(f"teacher logits: verified by hash and by asking the teacher again (difference {difference:.2g})", flush=True)
    return store


def _sha256_of_teacher(folder: Path) -> str | None:
    """Identity of the teacher that is here; None where no card says."""
    return load_card(folder).saved_sha256 if (folder / CARD_FILE).is_file() else None
