"""What several processes do together in the tests, and one alone for comparison."""

import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from compress import distributed
from compress.batches import TrainingData
from compress.errors import ArtifactError
from compress.methods import CrossEntropy, Method
from compress.models import Network, Statistics
from compress.models.cnn import PlainCnn
from compress.ranks import Ranks, agreed, wait_for_all
from compress.synchronized_norm import SynchronizedNorm
from compress.teacher_logits import OnlineTeacher
from compress.train import train_epochs
from compress.training_state import EpochReport, TrainSettings, new_training_state
from tests.compress import toy

SETTINGS = TrainSettings(epochs=2, batch_size=8, precision="float32", threads=1, device="cpu")
STATISTICS = Statistics(mean=(0.3, 0.3, 0.3), std=(0.2, 0.2, 0.2))


class Lesson(NamedTuple):
    """A training of a small network with batch normalisation."""

    settings: TrainSettings = SETTINGS
    method: Method = CrossEntropy()
    is_taught: bool = False
    num_images: int = 26
    checkpoint: Path | None = None
    """To go on from, or to write when stopping."""
    stop_after: int | None = None


class Outcome(NamedTuple):
    """What came out on one rank."""

    weights: dict[str, Tensor]
    best_weights: dict[str, Tensor]
    of_objective: dict[str, Tensor]
    history: list[EpochReport]


def network(seed: int = 0, *, dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = PlainCnn((6, 8), num_classes=toy.NUM_CLASSES)
    if dropout:
        backbone.classifier = nn.Sequential(nn.Dropout(dropout), backbone.classifier)
    return Network(backbone, STATISTICS)


def train(ranks: Ranks, lesson: Lesson) -> Outcome:
    """Train; another network on every rank to begin with, so that only the first one's can be the common start."""
    data = TrainingData(toy.split(lesson.num_images, 0), toy.split(12, 1), toy.VIEWS)
    teacher = OnlineTeacher(network(seed=7)) if lesson.is_taught else None
    with torch.random.fork_rng():
        torch.manual_seed(3)
        state = new_training_state(
            network(seed=ranks.rank), lesson.method, data, settings=lesson.settings, teacher=teacher
        )
    if lesson.checkpoint is not None and lesson.stop_after is None:
        state.load_state_dict(torch.load(lesson.checkpoint, weights_only=True))
    for report in train_epochs(state, data, settings=lesson.settings, seed=1):
        if isinstance(report, EpochReport) and report.epoch == lesson.stop_after:
            if ranks.is_first and lesson.checkpoint is not None:
                torch.save(state.state_dict(), lesson.checkpoint)
            break
    return Outcome(
        _plain(state.evaluated.state_dict()),
        _plain(state.best_weights),
        _plain(state.objective.state_dict()),
        [report._replace(images_per_second=0.0) for report in state.history],
    )


def _plain(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in weights.items()}


def sent_after_the_first_step(ranks: Ranks, method: Method) -> set[str]:
    """Which answers of networks travel between ranks once it is known what the loss uses."""
    kinds = {(2, toy.NUM_CLASSES): "logits", (2, 8): "pooled"}
    sent: list[Tensor] = []
    gather = distributed.gathered

    def noted(own: Tensor) -> Tensor:
        sent.append(own)
        return gather(own)

    distributed.gathered = noted
    try:
        train(ranks, Lesson(SETTINGS.model_copy(update={"epochs": 1}), method, is_taught=True, num_images=16))
    finally:
        distributed.gathered = gather
    last_labels = max(place for place, own in enumerate(sent) if not own.is_floating_point())
    return {kinds.get((own.ndim, own.shape[-1]), "maps") for own in sent[last_labels + 1 :]}


def normalise(ranks: Ranks, norm: nn.Module, images: Tensor, gradient: Tensor) -> dict[str, np.ndarray]:
    """A rank's part of a batch forwards and backwards through a normalisation."""
    own = ranks.part_of(len(images))
    part = images[own].clone().requires_grad_()
    with SynchronizedNorm():
        answer = norm(part)
    answer.backward(gradient[own])
    found = {"answer": answer, "gradient": part.grad, **dict(norm.named_buffers())}
    found |= {f"gradient of {name}": value.grad for name, value in norm.named_parameters()}
    return {name: value.detach().float().numpy() for name, value in found.items() if value is not None}


def fail(ranks: Ranks) -> Any:
    """The second rank finds a damaged file; the others wait for it."""
    if ranks.rank == 1:
        raise ArtifactError("image 5 is damaged")
    wait_for_all()


def die(ranks: Ranks) -> Any:
    """The second rank is killed; the others wait for it."""
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    wait_for_all()


def say(ranks: Ranks, values: list[Any]) -> Any:
    """What all ranks take for true when each has a value of its own."""
    return agreed(values[ranks.rank])
