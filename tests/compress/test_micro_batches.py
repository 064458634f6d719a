"""A batch in pieces gives the gradient of the batch, where the loss is a mean over its images."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from compress.batch_source import BatchPlan, HostBatches
from compress.errors import ParamsError
from compress.methods import (
    CRD,
    DIST,
    ITRD,
    KD,
    USKD,
    WTTM,
    Combination,
    CrossEntropy,
    LogitMethod,
    LogitStandardization,
    Method,
    TeacherFreeMethod,
    TeacherMethod,
    TfNKD,
    ViTKD,
    WithoutTeacher,
)
from compress.micro_batches import micro_batches, share
from compress.objective import StepInput, Taught
from compress.ranks import Ranks
from compress.resident_teacher import Places
from compress.teacher_logits import OnlineTeacher
from compress.train import train_epochs
from compress.training_state import Trainee, TrainingState, TrainSettings
from compress.training_step import learn_
from tests.compress import toy

COMPARING = [DIST(), TfNKD(), CRD(), ITRD(), USKD(), LogitStandardization(method=DIST()),
             Combination(logits=KD(), features=(CRD(),)), Combination(logits=DIST(), features=(ViTKD(),))]  # fmt: skip
UNIONS: list[type[Any]] = [*get_args(get_args(LogitMethod)[0]), *get_args(get_args(WithoutTeacher)[0])]
ON_LOGITS = [method() for method in UNIONS if issubclass(method, TeacherMethod | TeacherFreeMethod)]


def batch(size: int = 26) -> StepInput:
    source = HostBatches(BatchPlan(toy.data(), size, None, torch.device("cpu"), seed=1))
    return next(iter(source.epoch(0)))


def state(settings: TrainSettings, method: Method) -> TrainingState:
    """A network without batch normalisation, whose statistics are those of a piece."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    teacher = OnlineTeacher(toy.network(3)) if isinstance(method, TeacherMethod) else None
    return toy.state(settings, start=network.double(), method=method, teacher=teacher)


def settings(**changes: Any) -> TrainSettings:
    return toy.SETTINGS.model_copy(update={"batch_size": 26, **changes})


def gradients(method: Method, micro_batch_size: int | None) -> list[torch.Tensor]:
    """And the terms of the loss, of one step from the same beginning."""
    chosen = settings(micro_batch_size=micro_batch_size)
    begun = state(chosen, method)
    whole = batch()._replace(images=batch().images.double())
    if begun.objective.__class__.__name__ == "LogitObjective":
        begun.objective.teacher.network.double()  # type: ignore[union-attr]
    terms = learn_(Trainee(begun, chosen), micro_batches(whole, micro_batch_size))
    return [torch.stack(terms).double(), *(parameter.grad for parameter in begun.network.parameters())]  # type: ignore[list-item]


@pytest.mark.parametrize("size", [1, 7, 13])
@pytest.mark.parametrize("method", [CrossEntropy(), WTTM(), KD()])
def test_the_pieces_gradients_add_up_to_the_batchs(method: Method, size: int) -> None:
    for whole, pieces in zip(gradients(method, None), gradients(method, size), strict=True):
        torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-6)  # logits and losses are float32


@pytest.mark.parametrize("method", ON_LOGITS, ids=lambda method: method.name)
def test_a_method_says_whether_it_compares_samples(method: TeacherMethod | TeacherFreeMethod) -> None:
    """The loss of a batch is the mean of its images' losses, or it is not."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 3, 4, 0])

    def loss(rows: slice) -> torch.Tensor:
        if isinstance(method, TeacherMethod):
            return method(student[rows], teacher[rows], labels[rows]).total
        return method(student[rows], labels[rows]).total

    mean = torch.stack([loss(slice(row, row + 1)) for row in range(6)]).mean()
    assert torch.allclose(mean, loss(slice(None))) is not method.compares_samples


@pytest.mark.parametrize("method", COMPARING, ids=lambda method: method.name)
def test_methods_that_compare_samples_are_refused(method: Method) -> None:
    with pytest.raises(ParamsError, match=rf"train\.micro_batch_size: 4 .* method {method.name} compares the images"):
        toy.state(settings(micro_batch_size=4), method=method)


@pytest.mark.parametrize(
    "method", [ViTKD(), LogitStandardization(method=KD()), Combination(logits=KD(), features=(ViTKD(),))]
)
def test_composed_methods_compare_only_what_their_parts_do(method: Method) -> None:
    assert not method.compares_samples


def test_pieces_that_are_no_pieces_are_refused() -> None:
    with pytest.raises(ValidationError, match="micro_batch_size 64 has no effect with batch_size 64"):
        TrainSettings(micro_batch_size=64)


def test_training_in_pieces_learns() -> None:
    chosen = toy.SETTINGS.model_copy(update={"epochs": 8, "micro_batch_size": 3})
    begun = toy.state(chosen)
    for _ in train_epochs(begun, toy.data(), settings=chosen, seed=1):
        pass
    assert begun.history[-1].train_loss < 0.9 * begun.history[0].train_loss
    assert begun.history[-1].validation_accuracy_top1 > 0.9


def test_pieces_are_almost_equal_and_hold_everything_once() -> None:
    whole = batch()
    places = Places(torch.from_numpy(whole.indices), torch.from_numpy(whole.slots))
    whole = whole._replace(places=places, taught=Taught(torch.rand(26, 3), torch.ones(())))
    pieces = micro_batches(whole, 8)
    assert [len(piece.labels) for piece in pieces] == [6, 7, 6, 7]
    assert sum(share(piece, pieces) for piece in pieces) == pytest.approx(1)
    assert torch.equal(torch.cat([piece.images for piece in pieces]), whole.images)
    for name in ("indices", "slots", "whole"):
        assert np.concatenate([getattr(piece, name) for piece in pieces]).tolist() == getattr(whole, name).tolist()
    for piece in pieces:
        assert piece.places is not None
        assert piece.places.indices.tolist() == piece.indices.tolist()
        assert piece.taught is not None
        assert len(piece.taught.logits) == len(piece.labels)


def test_a_batch_that_is_small_enough_stays_whole() -> None:
    whole = batch(4)
    assert micro_batches(whole, 4) == [whole]
    assert micro_batches(whole, None) == [whole]


@pytest.mark.parametrize("num_images", [8, 9, 26, 31, 32])
@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_pieces_of_ranks_are_batches_that_ranks_divide(num_images: int, num_ranks: int, size: int) -> None:
    """In every turn each rank has the part of the joint piece that `Ranks` gives it, and nothing is lost."""
    indices = np.random.default_rng(0).permutation(100)[:num_images].astype(np.int64)
    turns: list[list[StepInput]] = []
    for rank in range(num_ranks):
        ranks = Ranks(rank, num_ranks)
        own = indices[ranks.part_of(num_images)]
        tensor = torch.from_numpy(own)
        part = StepInput(torch.zeros(len(own), 3, 1, 1), tensor, own, own, 1, indices)
        turns.append(micro_batches(part, size, ranks))
    assert len({len(pieces) for pieces in turns}) == 1
    for pieces in zip(*turns, strict=True):
        whole = pieces[0].whole
        assert all(piece.whole.tolist() == whole.tolist() for piece in pieces)
        for rank, piece in enumerate(pieces):
            ranks = Ranks(rank, num_ranks)
            assert len(pieces) == num_ranks
            assert len(turns[0]) == 1 or ranks.divides(len(whole))
            if len(turns[0]) > 1:
                assert piece.indices.tolist() == whole[ranks.part_of(len(whole))].tolist()
            assert piece.labels.tolist() == piece.indices.tolist()
    seen = np.concatenate([piece.indices for pieces in turns for piece in pieces])
    assert sorted(seen) == sorted(indices)


@contextmanager
def one_rank() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{Path(folder) / 'ranks'}", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def test_ranks_send_gradients_with_the_last_piece_only(monkeypatch: pytest.MonkeyPatch) -> None:
    synchronised: list[bool] = []
    forward = DistributedDataParallel.forward

    def noting(self: Any, *arguments: Any) -> Any:
        synchronised.append(self.require_backward_grad_sync)
        return forward(self, *arguments)

    monkeypatch.setattr(DistributedDataParallel, "forward", noting)
    chosen = settings(micro_batch_size=9)
    plain, shared = state(chosen, CrossEntropy()), state(chosen, CrossEntropy())
    pieces = micro_batches(batch()._replace(images=batch().images.double()), 9)
    learn_(Trainee(plain, chosen), pieces)
    with one_rank():
        shared.learner = DistributedDataParallel(shared.learner)
        learn_(Trainee(shared, chosen), pieces)
    assert synchronised == [False, False, True]
    for one, other in zip(plain.network.parameters(), shared.network.parameters(), strict=True):
        torch.testing.assert_close(one, other)
