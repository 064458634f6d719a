"""Losses and gradients that are no longer finite are named, and dealt with as the settings say."""

import re
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from compress.errors import TrainingError
from compress.non_finite import NonFiniteError, Resume, Setbacks, Skip, Stop, require_finite
from compress.train import train_epochs
from compress.training_state import TrainingState, TrainSettings
from tests.compress.toy import SETTINGS, data, network, state

STEPS = 4
"""Per epoch: 26 images in batches of 8."""


class Spoiled(nn.Module):
    """The toy network, whose answers are spoiled in given training steps."""

    def __init__(self, *steps: int, factor: float = float("nan")) -> None:
        super().__init__()
        self.inner, self.steps, self.factor, self.num_calls = network(), set(steps), factor, 0

    def forward(self, images: Tensor) -> Tensor:
        logits = self.inner(images)
        if not self.training:
            return logits
        self.num_calls += 1
        return logits * self.factor if self.num_calls - 1 in self.steps else logits


class BadGradient(torch.autograd.Function):
    """The identity with an infinite gradient."""

    @staticmethod
    def forward(context: object, logits: Tensor) -> Tensor:
        return logits.clone()

    @staticmethod
    def backward(context: object, *gradients: Tensor) -> Tensor:
        return gradients[0] * float("inf")


class SpoiledGradient(Spoiled):
    """The same for the gradient alone."""

    def forward(self, images: Tensor) -> Tensor:
        logits = self.inner(images)
        self.num_calls += self.training
        is_bad = self.training and self.num_calls - 1 in self.steps
        return BadGradient.apply(logits) if is_bad else logits  # type: ignore[no-any-return]


def settings(policy: Stop | Skip | Resume) -> TrainSettings:
    return SETTINGS.model_copy(update={"non_finite": policy, "ema_decay": 0.9})


def trained(policy: Stop | Skip | Resume, start: nn.Module) -> TrainingState:
    here = settings(policy)
    training = state(here, start=start)
    for _ in train_epochs(training, data(), settings=here, seed=0):
        pass
    return training


def weights(training: TrainingState) -> Iterator[tuple[str, Tensor]]:
    yield from training.network.state_dict().items()
    assert training.average is not None
    yield from training.average.state_dict().items()


@pytest.mark.parametrize("policy", [Skip(), Resume()], ids=["skip", "resume"])
def test_without_such_values_not_one_bit_changes(policy: Skip | Resume) -> None:
    plain, watched = trained(Stop(), Spoiled()), trained(policy, Spoiled())
    assert all(
        torch.equal(ours, theirs) for (_, ours), (_, theirs) in zip(weights(plain), weights(watched), strict=True)
    )
    assert [each[:-1] for each in plain.history] == [each[:-1] for each in watched.history]
    assert watched.setbacks == Setbacks()


def test_loss_that_is_not_finite_ends_the_training_naming_step_images_and_the_last_finite_value() -> None:
    with pytest.raises(NonFiniteError) as caught:
        trained(Stop(), Spoiled(STEPS + 2))
    line = str(caught.value)
    assert line.startswith("the loss became nan in step 2 of epoch 2 (train images ")
    assert len(line.split("(train images ")[1].split(")")[0].split(", ")) == 8
    assert re.search(r"the last finite loss was 0\.\d+, with a gradient of norm \d", line)
    assert "at step 1; lower optimizer.learning_rate" in line
    assert isinstance(caught.value, TrainingError)


def test_images_that_are_named_are_those_of_the_batch() -> None:
    from compress.batches import epoch_batches

    batches = list(epoch_batches(data(), 8, epoch=0, seed=0))
    with pytest.raises(NonFiniteError) as caught:
        trained(Stop(), Spoiled(1))
    assert f"(train images {', '.join(map(str, batches[1].indices.tolist()))})" in str(caught.value)


def test_gradient_that_is_not_finite_is_named_in_its_own_step() -> None:
    with pytest.raises(NonFiniteError, match=r"the gradient's norm is (nan|inf) in step 1 of epoch 1 "):
        trained(Stop(), SpoiledGradient(1))


def test_last_step_of_an_epoch_does_not_slip_into_a_checkpoint() -> None:
    with pytest.raises(NonFiniteError, match=r"in step 3 of epoch 1 "):
        trained(Stop(), SpoiledGradient(STEPS - 1))


@pytest.mark.parametrize("kind", [Spoiled, SpoiledGradient])
def test_skipped_steps_leave_no_trace(kind: type[Spoiled]) -> None:
    """Also the very first one, in which the optimiser makes its state."""
    training = trained(Skip(limit=2), kind(0, STEPS + 1))
    assert training.setbacks == Setbacks(num_skipped=2)
    assert all(value.isfinite().all() for _, value in weights(training))
    assert all(torch.tensor(report).isfinite().all() for report in training.history)
    assert len(training.history) == SETTINGS.epochs


def test_step_that_is_skipped_changes_nothing_at_all() -> None:
    """A training whose every step is bad ends as it began."""
    start = Spoiled(*range(100))
    before = {name: value.clone() for name, value in start.state_dict().items()}
    training = trained(Skip(limit=100), start)
    assert all(torch.equal(value, before[name]) for name, value in training.network.state_dict().items())


def test_one_skip_too_many_ends_the_training() -> None:
    with pytest.raises(NonFiniteError, match=r"in step 1 of epoch 2 .*2 steps were taken back already"):
        trained(Skip(limit=2), Spoiled(0, 1, STEPS + 1))


def test_resumed_epoch_begins_where_it_began_at_a_lower_rate() -> None:
    training = trained(Resume(factor=0.25), Spoiled(STEPS + 2))
    assert training.setbacks == Setbacks(num_resumed=1, rate_factor=0.25)
    assert [report.epoch for report in training.history] == [1, 2, 3]
    plain = trained(Stop(), Spoiled())
    assert training.history[0][:-1] == plain.history[0][:-1]
    assert training.history[1].learning_rate == plain.history[1].learning_rate * 0.25
    assert all(value.isfinite().all() for _, value in weights(training))


def test_resuming_is_as_if_the_rate_had_been_lower_from_that_epoch_on() -> None:
    training = trained(Resume(), Spoiled(1))
    lower = settings(Stop())
    rate = lower.optimizer.learning_rate * 0.5
    lower = lower.model_copy(update={"optimizer": lower.optimizer.model_copy(update={"learning_rate": rate})})
    plain = state(lower, start=Spoiled())
    for _ in train_epochs(plain, data(), settings=lower, seed=0):
        pass
    assert all(
        torch.allclose(ours, theirs) for (_, ours), (_, theirs) in zip(weights(training), weights(plain), strict=True)
    )


def test_epoch_that_fails_every_time_ends_the_training() -> None:
    with pytest.raises(NonFiniteError, match=r"the epoch was begun again 2 times"):
        trained(Resume(limit=2), Spoiled(*range(100)))


def test_setbacks_are_part_of_the_state() -> None:
    training = trained(Resume(), Spoiled(1))
    other = state(settings(Resume()), start=Spoiled())
    other.load_state_dict(training.state_dict())
    assert other.setbacks == Setbacks(num_resumed=1, rate_factor=0.5)


@pytest.mark.parametrize("where", ["weight", "buffer", "optimiser"])
def test_state_with_nan_is_never_kept(where: str) -> None:
    training = trained(Stop(), Spoiled())
    require_finite(training, epoch=3)
    tensor = {
        "weight": next(training.network.parameters()),
        "buffer": next(training.network.buffers()),
        "optimiser": next(iter(training.optimizer.state.values()))["momentum_buffer"],
    }[where]
    with torch.no_grad():
        tensor[(0,) * tensor.ndim] = float("nan")
    with pytest.raises(NonFiniteError, match=rf"after epoch 3 the {where}.* is not finite although every loss was"):
        require_finite(training, epoch=3)


def test_buffers_may_hold_infinities_of_their_own() -> None:
    """As masks of attention do."""
    start = Spoiled()
    start.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    here = SETTINGS.model_copy(update={"non_finite": Skip()})
    training = state(here, start=start)
    for _ in train_epochs(training, data(), settings=here, seed=0):
        pass
    assert training.epoch == SETTINGS.epochs
