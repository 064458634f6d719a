"""Where a training gets its batches from: the same ones, whether the host makes them or the training device.

On a GPU data that fit into its free memory stay there. Others are made ahead by a thread and copied while the GPU
computes. On a CPU a batch is made when it is its turn: whoever made it ahead would take the cores from training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import NamedTuple, final

import torch

from compress.batches import Batch, TrainingData, count_classes, epoch_batches, epoch_portions, on_device
from compress.data.device_views import is_made_here
from compress.data.mixing import Mixing, mix
from compress.objective import StepInput
from compress.prefetch import prefetched
from compress.ranks import ALONE, Ranks
from compress.resident import ResidentSplit, pixel_bytes, resident_batches
from compress.tensors import to_device

BATCHES_AHEAD = 3


class BatchPlan(NamedTuple):
    """What decides the batches of a training, and where they are needed."""

    data: TrainingData
    batch_size: int
    mixing: Mixing | None
    device: torch.device
    seed: int
    ranks: Ranks = ALONE


class BatchSource(ABC):
    """The batches of every epoch, on the training device."""

    def __init__(self, plan: BatchPlan) -> None:
        self.plan = plan

    @abstractmethod
    def epoch(self, epoch: int) -> Iterator[StepInput]:
        """The batches of an epoch, counted from 0; they follow from the plan and the epoch alone."""


@final
class HostBatches(BatchSource):
    """Made by the host when it is their turn."""

    def epoch(self, epoch: int) -> Iterator[StepInput]:
        plan = self.plan
        batches = epoch_batches(plan.data, plan.batch_size, epoch=epoch, seed=plan.seed, ranks=plan.ranks)
        for step, batch in enumerate(batches):
            yield on_device(batch, plan.mixing, plan.device, seed=plan.seed, epoch=epoch, step=step)


@final
class PrefetchedBatches(BatchSource):
    """Made by the host ahead of their turn, in a thread that also copies them to the GPU."""

    def epoch(self, epoch: int) -> Iterator[StepInput]:
        plan = self.plan
        batches = epoch_batches(plan.data, plan.batch_size, epoch=epoch, seed=plan.seed, ranks=plan.ranks)
        with closing(prefetched(_sent(batches, plan.device), depth=BATCHES_AHEAD)) as ahead:
            for step, sent in enumerate(ahead):
                batch = _received(sent, plan.device)
                yield on_device(batch, plan.mixing, plan.device, seed=plan.seed, epoch=epoch, step=step)


@final
class ResidentBatches(BatchSource):
    """Made on the training device from the pixels that it holds."""

    def __init__(self, plan: BatchPlan) -> None:
        super().__init__(plan)
        self._num_classes = count_classes(plan.data)

    def epoch(self, epoch: int) -> Iterator[StepInput]:
        plan, views = self.plan, self.plan.data.views
        train, augmentation = plan.data.train, views.augmentation
        assert isinstance(train, ResidentSplit)
        assert is_made_here(augmentation)
        portions = epoch_portions(plan.data, plan.batch_size, epoch=epoch, seed=plan.seed, ranks=plan.ranks)
        batches = resident_batches(train, list(portions), augmentation, seed=views.seed, epoch=epoch)
        for step, batch in enumerate(batches):
            yield batch if plan.mixing is None else self._mixed(batch, plan.mixing, epoch, step)

    def _mixed(self, batch: StepInput, mixing: Mixing, epoch: int, step: int) -> StepInput:
        images, labels = mix(
            batch.images, batch.labels, self._num_classes,
            settings=mixing, seed=self.plan.seed, epoch=epoch, step=step,
        )  # fmt: skip
        return batch._replace(images=images, labels=labels)


def batch_source(plan: BatchPlan, *, resident_bytes: int) -> BatchSource:
    """The fastest source that the device has; `resident_bytes` is the memory that the data may take there."""
    if can_reside(plan.data) and pixel_bytes(plan.data.train) <= resident_bytes:
        return ResidentBatches(plan._replace(data=resident_data(plan.data, plan.device, resident_bytes=resident_bytes)))
    return HostBatches(plan) if plan.device.type == "cpu" else PrefetchedBatches(plan)


def can_reside(data: TrainingData) -> bool:
    """Whether the views of these data can be made from pixels in device memory."""
    return is_made_here(data.views.augmentation)


def resident_data(data: TrainingData, device: torch.device, *, resident_bytes: int) -> TrainingData:
    """The data with the pixels of train in device memory, and those of validation where they fit as well."""
    sizes = pixel_bytes(data.train), pixel_bytes(data.validation)
    validation = ResidentSplit(data.validation, device) if sum(sizes) <= resident_bytes else data.validation
    return TrainingData(ResidentSplit(data.train, device), validation, data.views)


class _Sent(NamedTuple):
    """A batch on its way to the GPU."""

    batch: Batch
    arrived: torch.cuda.Event | None
    """None on a CPU, where nothing travels."""


def _sent(batches: Iterator[Batch], device: torch.device) -> Generator[_Sent]:
    """Begin to copy each batch, beside what the GPU computes."""
    if device.type == "cpu":
        for batch in batches:
            yield _Sent(batch, None)
        return
    stream = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(stream):  # this thread's current device too: a new thread starts on the first GPU
            images, labels = to_device(batch.images, device), to_device(batch.labels, device)
            arrived = torch.cuda.Event()
            arrived.record(stream)
        yield _Sent(batch._replace(images=images, labels=labels), arrived)


def _received(sent: _Sent, device: torch.device) -> Batch:
    """The batch, for work that the GPU begins once it has arrived."""
    if sent.arrived is not None:
        stream = torch.cuda.current_stream(device)
        stream.wait_event(sent.arrived)
        for tensor in (sent.batch.images, sent.batch.labels):
            tensor.record_stream(stream)  # or its memory would be free for the next copy when Python lets go of it
    return sent.batch
