"""Trained networks as artifacts: what their cards say, and where they go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.artifact import ModelCard, save_model
from compress.data.manifest import Manifest
from compress.models import ModelSource, Network, count_flops, count_parameters
from compress.training_state import EpochReport, TrainingState
from pipelines.code import code_fingerprint
from pipelines.origin import origin_of
from pipelines.trained import Trained
from pipelines.training import Job, Lineage, threads_of


def card_of(
    model: ModelSource,
    network: Network,
    manifest: Manifest,
    *,
    report: EpochReport,
    identity: str,
    lineage: Lineage,
) -> ModelCard:
    """The card of a network as it stands after an epoch; seed and settings are added by whoever trained it."""
    return ModelCard(
        architecture=model.architecture(),
        classes=manifest.classes,
        height=manifest.height,
        width=manifest.width,
        mean=network.statistics.mean,
        std=network.statistics.std,
        preprocessing=manifest.preprocessing.model_dump(mode="json"),
        epoch=report.epoch,
        metrics=measured_by(report),
        num_parameters=count_parameters(network),
        flops=count_flops(network, (manifest.height, manifest.width)),
        fingerprint=identity,
        lineage=lineage,
    )


def save_networks(job: Job, state: TrainingState, trained: Trained, folders: Mapping[str, Path]) -> None:
    """Leave the artifacts of a training from the beginning; `folders` says where `last` and `best` go."""
    network = state.evaluated
    assert isinstance(network, Network)
    known = facts_of_training(job)
    for which, folder in folders.items():
        report = trained.last if which == "last" else trained.best
        if which == "best":
            network.load_state_dict(state.best_weights)
        card = card_of(job.model, network, job.manifest, report=report, identity=job.fingerprint, lineage=job.lineage)
        save_model(folder, network, card.model_copy(update=known))


def facts_of_training(job: Job) -> dict[str, Any]:
    """What the card of a network says about how it was trained."""
    training = {"method": job.method.model_dump(mode="json"), **job.settings.model_dump(mode="json")}
    threads, device = threads_of(job.settings), job.settings.device
    code = code_fingerprint(job.method)
    origin = origin_of(job.recipe, code=code, device=device, threads=threads, root=Path.cwd())
    return {"training": training, "seed": job.seed, "origin": origin}


def measured_by(report: EpochReport) -> dict[str, float]:
    """What a card says was measured after an epoch."""
    return {
        "accuracy_top1_validation": report.validation_accuracy_top1,
        "loss_validation": report.validation_loss,
    }
