"""The one training loop, for teachers, students and baselines alike.

Everything random is a pure function of (seed, epoch): the order of images, their views, dropout. A run resumed after
an epoch therefore goes on to the same bits as one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from compress.batch_source import BatchPlan, BatchSource
from compress.batches import TrainingData
from compress.cuda_graph import GpuRecorder
from compress.data.prepared import PreparedSplit
from compress.non_finite import Watch, require_finite
from compress.ranks import ALONE, Ranks, agreed, ranks_here, summed
from compress.residence import memory_for_data, settle
from compress.steps import Moment, Steps
from compress.tensors import as_float_images
from compress.training_state import EpochReport, StepReport, Trainee, TrainingState, TrainSettings
from compress.types import ByteImages, Labels

VALIDATION_BATCH = 64
STEPS_PER_REPORT = 20


def train_epochs(
    state: TrainingState, data: TrainingData, *, settings: TrainSettings, seed: int
) -> Iterator[StepReport | EpochReport]:
    """Train from where `state` stands to the last epoch, handing out reports; `state` is current at each EpochReport.

    Raises:
        NonFiniteError: a loss or gradient is not finite, and `settings.non_finite` allows it no more.
    """
    for _, report in train_together([Trainee(state, settings)], data, seed=seed):
        yield report


def train_together(
    trainees: Sequence[Trainee], data: TrainingData, *, seed: int
) -> Iterator[tuple[int, StepReport | EpochReport]]:
    """Train several networks on the same batches, handing out reports with the network's place among `trainees`.

    Batches are decoded and augmented once, and a live teacher is asked once. Each network comes out bit for bit as if
    it had trained alone: nothing random is shared. One that is ahead, from a checkpoint, waits for the others.

    Raises:
        ValueError: the networks do not share batch size, mixing, device and threads.
        NonFiniteError: a loss or gradient is not finite, and `settings.non_finite` allows it no more.
    """
    shared = {
        (each.settings.batch_size, each.settings.mixing, _device(each), each.settings.threads) for each in trainees
    }
    if len(shared) > 1:
        raise ValueError(f"networks trained together share batch size, mixing, device and threads, got {shared}")
    work: _Work | None = None
    for epoch in range(max((each.settings.epochs for each in trainees), default=0)):
        active = {
            number: each
            for number, each in enumerate(trainees)
            if each.state.epoch == epoch and epoch < each.settings.epochs
        }
        if active:
            work = work or _equipped(trainees, data, seed=seed)
            yield from _epoch(active, work, epoch=epoch)


class _Work(NamedTuple):
    """What all epochs of a training share."""

    source: BatchSource
    steps: Steps


def _equipped(trainees: Sequence[Trainee], data: TrainingData, *, seed: int) -> _Work:
    settings, device, ranks = trainees[0].settings, _device(trainees[0]), ranks_here()
    plan = BatchPlan(data, settings.batch_size, settings.mixing, device, seed, ranks)
    source = settle(trainees, plan, resident_bytes=memory_for_data(trainees, device))
    return _Work(source, Steps(trainees, GpuRecorder() if device.type == "cuda" else None, ranks))


def _epoch(active: Mapping[int, Trainee], work: _Work, *, epoch: int) -> Iterator[tuple[int, StepReport | EpochReport]]:
    data, batch_size, _, device, seed, ranks = work.source.plan
    num_steps = math.ceil(len(data.train) / batch_size)
    # Summed on the device: reading a value at every step would stop a GPU each time.
    sums = {number: torch.zeros(2, dtype=torch.float64, device=device) for number in active}
    watches = {number: _watch(each, epoch, ranks) for number, each in active.items()}
    num_images, started = 0, time.perf_counter()
    for step, batch in enumerate(work.source.epoch(epoch)):
        for number, watch in ((number, watch) for number, watch in watches.items() if not watch.is_set_back):
            watch.before()
            terms = work.steps.take(number, batch, Moment(seed, epoch, step, num_steps))
            terms = watch.after(step, batch.whole, terms)
            sums[number] += torch.stack(terms).double() * len(batch.whole)
        num_images += len(batch.whole)
        if step % STEPS_PER_REPORT == STEPS_PER_REPORT - 1:
            speed = num_images * len(active) / (time.perf_counter() - started)
            for number in active:
                yield number, StepReport(epoch + 1, num_images, speed)
    for watch in watches.values():
        watch.look()
    again = {number: each for number, each in active.items() if watches[number].is_set_back}
    totals = {number: (values / watches[number].num_kept(num_images)).tolist() for number, values in sums.items()}
    speed = num_images * len(active) / (time.perf_counter() - started)
    for number, trainee in ((number, each) for number, each in active.items() if number not in again):
        hard, soft = agreed(totals[number])
        require_finite(trainee.state, epoch=epoch + 1)
        accuracy, loss = validate(trainee.state.evaluated, data.validation, ranks)
        rate = trainee.state.optimizer.param_groups[0]["lr"]
        report = agreed(EpochReport(epoch + 1, hard + soft, hard, soft, accuracy, loss, rate, speed))
        _finish_epoch_(trainee.state, report)
        yield number, report
    if again:
        yield from _epoch(again, work, epoch=epoch)


def _watch(trainee: Trainee, epoch: int, ranks: Ranks) -> Watch:
    return Watch(trainee.state, trainee.settings.non_finite, epoch=epoch + 1, ranks=ranks)


def _device(trainee: Trainee) -> torch.device:
    return next(trainee.state.network.parameters()).device


@torch.inference_mode()
def validate(network: nn.Module, split: PreparedSplit, ranks: Ranks = ALONE) -> tuple[float, float]:
    """Top-1 accuracy and mean cross-entropy of a network on a split, in float32; given ranks, they share the work."""
    network.eval()
    device = next(network.parameters()).device
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for images, labels in split.batches(VALIDATION_BATCH) if ranks == ALONE else _part_of(split, ranks):
        logits = network(as_float_images(images, device)).float()
        labels = labels.to(device)
        sums[0] += (logits.argmax(dim=1) == labels).sum()
        sums[1] += F.cross_entropy(logits, labels, reduction="sum")
    if ranks != ALONE:
        summed(sums)
    accuracy, loss = (sums / len(split)).tolist()
    return accuracy, loss


def _part_of(split: PreparedSplit, ranks: Ranks) -> Iterator[tuple[ByteImages, Labels]]:
    """Every so many-th batch of a split."""
    for start in range(ranks.rank * VALIDATION_BATCH, len(split), ranks.num_ranks * VALIDATION_BATCH):
        indices = np.arange(start, min(start + VALIDATION_BATCH, len(split)), dtype=np.int64)
        yield split.images(indices), torch.from_numpy(split.labels[indices])


def _finish_epoch_(state: TrainingState, report: EpochReport) -> None:
    state.epoch = report.epoch
    state.history.append(report)
    best = max(state.history, key=lambda each: (each.validation_accuracy_top1, -each.epoch))
    if best is report:
        state.best_epoch = report.epoch
        state.best_weights = {name: value.detach().clone() for name, value in state.evaluated.state_dict().items()}
