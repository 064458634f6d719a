"""What a training stage leaves for later stages to read, beside the networks themselves."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from compress.files import write_record, write_whole
from compress.training_state import EpochReport
from pipelines.layout import QUANTIZATION_AWARE

HISTORY = "history.csv"
HISTORY_COLUMNS = ("seed", *EpochReport._fields)


@dataclass(frozen=True)
class Trained:
    """A finished training run."""

    seed: int
    history: tuple[EpochReport, ...]
    train_seconds: float
    last: EpochReport
    best: EpochReport
    fingerprint: str
    rounded: Trained | None = None
    """The training after it, with the rounding of its 8-bit file."""

    def summary(self) -> dict[str, JsonValue]:
        """What training.json says about it."""
        rounded = {} if self.rounded is None else {QUANTIZATION_AWARE: self.rounded.summary()}
        return {
            "seed": self.seed,
            "train_seconds": round(self.train_seconds, 3),
            "fingerprint": self.fingerprint,
            "last": _summary(self.last),
            "best": _summary(self.best),
            **rounded,
        }


def write_training_files(folder: Path, runs: Sequence[Trained], facts: Mapping[str, Any]) -> None:
    """Leave training.json and history.csv: settings, one summary per seed, one row per epoch."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HISTORY_COLUMNS)
    for run in runs:
        writer.writerows((run.seed, *(round(value, 6) for value in report)) for report in run.history)
    history = text.getvalue().encode()
    write_whole(folder / HISTORY, history)
    hashes = {HISTORY: hashlib.sha256(history).hexdigest()}
    write_record(folder / "training.json", {**facts, "seeds": [run.summary() for run in runs], "hashes": hashes})


def _summary(report: EpochReport) -> dict[str, JsonValue]:
    return {
        "epoch": report.epoch,
        "accuracy_top1_validation": round(report.validation_accuracy_top1, 6),
        "loss_validation": round(report.validation_loss, 6),
    }
