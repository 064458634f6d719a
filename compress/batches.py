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
from compress.tensors import as_float_images
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


def epoch_batches(data: TrainingData, batch_size: int, *, epoch: int, seed: int) -> Iterator[Batch]:
    """All train images once, in an order and through views that follow from seed and epoch (counted from 0)."""
    order = np.random.default_rng((seed, epoch)).permutation(len(data.train)).astype(np.int64)
    slots = data.views.slots(len(order), epoch)
    num_classes = int(data.train.labels.max()) + 1  # every class has train images
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        if start > 0 and len(indices) == 1 < batch_size:
            return  # batch normalisation cannot learn from a single left-over image
        batch_slots = slots[start : start + batch_size]
        images = view_images(
            data.train, data.views.augmentation, indices=indices, slots=batch_slots, seed=data.views.seed
        )
        yield Batch(images, torch.from_numpy(data.train.labels[indices]), indices, batch_slots, num_classes)


def on_device(
    batch: Batch, mixing: Mixing | None, device: torch.device, *, seed: int, epoch: int, step: int
) -> StepInput:
    """The batch as the objective takes it, mixed where the settings ask for it."""
    images = as_float_images(batch.images, device)
    labels = batch.labels.to(device, non_blocking=True)
    if mixing is not None:
        images, labels = mix(images, labels, batch.num_classes, settings=mixing, seed=seed, epoch=epoch, step=step)
    return StepInput(images, labels, batch.indices, batch.slots, epoch + 1)
