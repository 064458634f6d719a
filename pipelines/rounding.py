"""Training a student on with the rounding of its 8-bit file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
from pydantic import JsonValue

import compress
from compress.artifact import load_card
from compress.data.prepared import PreparedSplit
from compress.fingerprint import fingerprint_of_files
from compress.models import Network
from compress.optimization import Cosine
from compress.quantize.qat import QatNetwork, QatSettings, quantization_aware
from compress.quantize.qat_artifact import save_quantization_aware
from compress.quantize.qat_graph import quantized_graph
from compress.training_state import TrainingState, TrainSettings
from compress.types import ImageArray
from pipelines.layout import QUANTIZATION_AWARE
from pipelines.saved_networks import facts_of_training, measured_by
from pipelines.settings import QuantizationAwareSettings
from pipelines.trained import Trained
from pipelines.training import Continuation, Job, build_for

CODE = ("qat", "qat_graph", "qat_layers")
"""Modules of compress.quantize that decide what comes out."""
BATCH_SIZE = 64
"""Images that are observed at once; it decides nothing."""


@final
@dataclass(frozen=True)
class Rounding(Continuation):
    """From a trained network to one that rounds."""

    before: Job
    settings: QuantizationAwareSettings
    section: str = QUANTIZATION_AWARE

    def recipe(self) -> dict[str, JsonValue]:
        return {QUANTIZATION_AWARE: self.settings.model_dump(mode="json")}

    def facts(self) -> dict[str, JsonValue]:
        folder = Path(compress.__file__).parent / "quantize"
        return {
            "before": self.before.fingerprint,
            "settings": self.settings.model_dump(mode="json"),
            "code": fingerprint_of_files({folder / f"{name}.py" for name in CODE}),
        }

    def changed(self, network: Network, job: Job) -> QatNetwork:
        return quantization_aware(
            network,
            image_size=(job.manifest.height, job.manifest.width),
            calibration=_observed(job.data.train, self.settings.num_calibration_images),
            settings=QatSettings(reduce_range=self.settings.reduce_range, ranges=self.settings.ranges),
        )


def rounding_after(job: Job, settings: QuantizationAwareSettings) -> Job:
    """The training that follows another."""
    return replace(
        job,
        label=f"{job.label}, rounding",
        settings=_short(job.settings, settings),
        continuation=Rounding(job, settings),
    )


def check_can_round(job: Job) -> None:
    """Look before the long training whether the network is one that can be trained with rounding.

    Raises:
        ModelError: it is not.
    """
    network = build_for(job.model.architecture(), job.manifest, replace_head=True)
    quantized_graph(network, (job.manifest.height, job.manifest.width), largest_weight=127, is_learned=True)


def save_rounding(job: Job, state: TrainingState, trained: Trained, folder: Path, *, made_of: Path) -> None:
    """Leave the best network that rounds; `made_of` is the folder of the one that it went on from."""
    network = state.evaluated
    assert isinstance(network, QatNetwork)
    network.load_state_dict(state.best_weights)
    card = load_card(made_of)
    told = {
        **facts_of_training(job),
        "epoch": trained.best.epoch,
        "metrics": measured_by(trained.best),
        "fingerprint": job.fingerprint,
        "lineage": {**card.lineage, "made_of_sha256": card.saved_sha256},
    }
    save_quantization_aware(folder, network, card.model_copy(update=told))


def _short(train: TrainSettings, settings: QuantizationAwareSettings) -> TrainSettings:
    rate = train.optimizer.learning_rate * settings.learning_rate_factor
    changes = {
        "epochs": settings.epochs,
        "optimizer": train.optimizer.model_copy(update={"learning_rate": rate}),
        "schedule": Cosine(),
        # An average of a few hundred steps would mostly be of the weights before.
        "ema_decay": None,
    }
    return train.model_copy(update=changes)


def _observed(split: PreparedSplit, count: int) -> Iterator[ImageArray]:
    """Images drawn from all of a split: the first of it may be of one class."""
    drawn = np.random.default_rng(0).permutation(len(split))[:count].astype(np.int64)
    for start in range(0, len(drawn), BATCH_SIZE):
        yield split.images(drawn[start : start + BATCH_SIZE]).numpy()
