"""What a training stage leaves for later stages to read, beside the networks themselves."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from compress.files import write_json
from compress.train import EpochReport

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

    def summary(self) -> dict[str, JsonValue]:
        """What training.json says about it."""
        return {
            "seed": self.seed,
            "train_seconds": round(self.train_seconds, 3),
            "fingerprint": self.fingerprint,
            "last": _summary(self.last),
            "best": _summary(self.best),
        }


def write_training_files(folder: Path, runs: Sequence[Trained], facts: Mapping[str, Any]) -> None:
    """Leave training.json and history.csv: settings, one summary per seed, one row per epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "training.json", {**facts, "seeds": [run.summary() for run in runs]})
    with (folder / "history.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HISTORY_COLUMNS)
        for run in runs:
            writer.writerows((run.seed, *(round(value, 6) for value in report)) for report in run.history)


def _summary(report: EpochReport) -> dict[str, JsonValue]:
    return {
        "epoch": report.epoch,
        "accuracy_top1_validation": round(report.validation_accuracy_top1, 6),
        "loss_validation": round(report.validation_loss, 6),
    }
