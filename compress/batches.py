"""What a network sees in training: every image once an epoch, in an order and through views that follow from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from compress.data.mixing import Mixing, mix
from compress.data.prepared import PreparedSplit
from compress.data.view_schedule import ViewSettings
from compress.data.views import view_images
from compress.objective import StepInput
from compress.ranks import ALONE, Ranks
from compress.tensors import as_float_images, to_device
from compress.types import IndexArray


@dataclass(frozen=True)
class TrainingData:
    """What a network sees: train images through views, validation images as they are."""

    train: PreparedSplit
    validation: PreparedSplit
    views: ViewSettings


class Batch(NamedTuple):
    """One training batch; indices and slots stay on the host."""

    images: torch.Tensor
    labels: torch.Tensor
    indices: IndexArray
    slots: IndexArray
    num_classes: int
    whole: IndexArray
    """Indices of the whole batch, of which this is the part of one of several processes."""


class Portion(NamedTuple):
    """Which views make up a batch."""

    indices: IndexArray
    slots: IndexArray
    whole: IndexArray
    """Indices of the whole batch, of which this is the part of one of several processes."""


def epoch_portions(
    data: TrainingData, batch_size: int, *, epoch: int, seed: int, ranks: Ranks = ALONE
) -> Iterator[Portion]:
    """All train images once, in an order and through views that follow from seed and epoch (counted from 0).

    Of several processes each gets its part of every batch; the batches are those of one.
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(data.train)).astype(np.int64)
    slots = data.views.slots(len(order), epoch)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        if start > 0 and len(indices) == 1 < batch_size:
            return  # batch normalisation cannot learn from a single left-over image
        own = ranks.part_of(len(indices))
        yield Portion(indices[own], slots[start : start + batch_size][own], indices)


def epoch_batches(
    data: TrainingData, batch_size: int, *, epoch: int, seed: int, ranks: Ranks = ALONE
) -> Iterator[Batch]:
    """The views that `epoch_portions` names, made on the host."""
    num_classes = count_classes(data)
    for indices, slots, whole in epoch_portions(data, batch_size, epoch=epoch, seed=seed, ranks=ranks):
        images = view_images(data.train, data.views.augmentation, indices=indices, slots=slots, seed=data.views.seed)
        labels = torch.from_numpy(data.train.labels[indices])
        yield Batch(images, labels, indices, slots, num_classes, whole)


def count_classes(data: TrainingData) -> int:
    """How many classes there are: every one has train images."""
    return int(data.train.labels.max()) + 1


def on_device(
    batch: Batch, mixing: Mixing | None, device: torch.device, *, seed: int, epoch: int, step: int
) -> StepInput:
    """The batch as the objective takes it, mixed where the settings ask for it."""
    images = as_float_images(batch.images, device)
    labels = to_device(batch.labels, device)
    if mixing is not None:
        images, labels = mix(images, labels, batch.num_classes, settings=mixing, seed=seed, epoch=epoch, step=step)
    return StepInput(images, labels, batch.indices, batch.slots, epoch + 1, batch.whole)
