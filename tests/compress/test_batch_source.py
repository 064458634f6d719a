"""Whoever makes the batches, the host, a thread or the training device: they are the same."""

import threading
from collections.abc import Iterator

import pytest
import torch

from compress.batch_source import (
    BatchPlan,
    BatchSource,
    HostBatches,
    PrefetchedBatches,
    ResidentBatches,
    batch_source,
    resident_data,
)
from compress.batches import TrainingData
from compress.data.mixing import Mixing
from compress.data.view_schedule import ViewSettings
from compress.data.views import NoAugmentation, RandomResizedCropFlip
from compress.objective import StepInput
from compress.ranks import Ranks
from compress.resident import ResidentSplit
from compress.types import ByteImages, Labels
from tests.compress import toy

CPU = torch.device("cpu")
PLENTY = 10**6
PLANS = {
    "plain": BatchPlan(toy.data(), 8, None, CPU, seed=1),
    "mixed": BatchPlan(toy.data(), 8, Mixing(mixup_alpha=0.8, cutmix_alpha=1.0), CPU, seed=1),
    "a left-over image": BatchPlan(toy.data(), 5, None, CPU, seed=1),
    "larger than the data": BatchPlan(toy.data(), 64, None, CPU, seed=1),
    "second of three ranks": BatchPlan(toy.data(), 8, None, CPU, seed=1, ranks=Ranks(1, 3)),
    "no augmentation": BatchPlan(
        TrainingData(toy.split(26, 0), toy.split(12, 1), ViewSettings(augmentation=NoAugmentation())),
        8, None, CPU, seed=1,
    ),
}  # fmt: skip


def resident(plan: BatchPlan) -> ResidentBatches:
    return ResidentBatches(plan._replace(data=resident_data(plan.data, CPU, resident_bytes=PLENTY)))


def batches(source: BatchSource) -> Iterator[StepInput]:
    for epoch in (0, 1, 5):
        yield from source.epoch(epoch)


def assert_same(first: BatchSource, second: BatchSource) -> None:
    for one, other in zip(batches(first), batches(second), strict=True):
        assert torch.equal(one.images, other.images)
        assert one.images.stride() == other.images.stride()
        assert torch.equal(one.labels, other.labels)
        assert one.labels.dtype == other.labels.dtype
        for name in ("indices", "slots", "whole"):
            assert getattr(one, name).tolist() == getattr(other, name).tolist()
        assert one.epoch == other.epoch


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_batches_of_the_device_are_those_of_the_host(plan: BatchPlan) -> None:
    assert_same(HostBatches(plan), resident(plan))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_batches_made_ahead_are_those_of_the_host(plan: BatchPlan) -> None:
    assert_same(HostBatches(plan), PrefetchedBatches(plan))


def test_how_many_views_are_cut_out_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.resident.PIXELS_AT_ONCE", 64 * 17)
    assert_same(HostBatches(PLANS["plain"]), resident(PLANS["plain"]))


def test_places_on_the_device_are_those_on_the_host() -> None:
    for batch in batches(resident(PLANS["plain"])):
        assert batch.places is not None
        assert batch.places.indices.tolist() == batch.indices.tolist()
        assert batch.places.slots.tolist() == batch.slots.tolist()
        assert batch.samples.indices.tolist() == batch.indices.tolist()


def test_pixels_copied_in_pieces_are_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.resident.IMAGES_AT_ONCE", 5)
    split = toy.split(26, 0)
    copied = ResidentSplit(split, CPU)

    def whole(some: Iterator[tuple[ByteImages, Labels]]) -> list[torch.Tensor]:
        return [torch.cat(parts) for parts in zip(*some, strict=True)]

    for one, other in zip(whole(split.batches(7)), whole(copied.batches(9)), strict=True):
        assert torch.equal(one, other)
    assert copied.picture(3).tobytes() == split.picture(3).tobytes()
    with pytest.raises(IndexError, match=r"not all in 0\.\.25"):
        copied.images(torch.tensor([26]).numpy())


def test_data_that_fit_stay_on_the_device_and_others_are_streamed() -> None:
    plan, gpu = PLANS["plain"], torch.device("cuda")
    train, both = 26 * 8 * 8 * 3, 38 * 8 * 8 * 3
    assert isinstance(batch_source(plan, resident_bytes=0), HostBatches)
    assert isinstance(batch_source(plan, resident_bytes=train - 1), HostBatches)
    assert isinstance(batch_source(plan._replace(device=gpu), resident_bytes=train - 1), PrefetchedBatches)
    tight, roomy = (batch_source(plan, resident_bytes=size) for size in (both - 1, both))
    assert isinstance(tight, ResidentBatches)
    assert not isinstance(tight.plan.data.validation, ResidentSplit)
    assert isinstance(roomy.plan.data.validation, ResidentSplit)


def test_views_that_need_the_stored_pictures_are_not_made_on_the_device() -> None:
    views = ViewSettings(augmentation=RandomResizedCropFlip())
    plan = PLANS["plain"]._replace(data=TrainingData(toy.split(26, 0), toy.split(12, 1), views))
    assert isinstance(batch_source(plan, resident_bytes=PLENTY), HostBatches)


def test_no_thread_stays_behind_an_abandoned_epoch() -> None:
    epoch = PrefetchedBatches(PLANS["plain"]).epoch(0)
    next(epoch)
    epoch.close()  # type: ignore[attr-defined]  an iterator in the interface, a generator in fact
    assert not [thread for thread in threading.enumerate() if thread.name == "compress-prefetch"]
