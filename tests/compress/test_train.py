"""The training loop: it learns, it is a pure function of its inputs, and a resumed run goes on to the same bits."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compress.batches import epoch_batches
from compress.errors import TrainingError
from compress.methods import KD, CrossEntropy, Method
from compress.optimization import SGD, AdamW, Constant, Step
from compress.teacher_logits import OnlineTeacher
from compress.train import train_epochs, train_together, validate
from compress.training_state import EpochReport, StepReport, Trainee, TrainingState, TrainSettings
from tests.compress import toy


def trained(
    settings: TrainSettings = toy.SETTINGS, *, stop_after: int | None = None, state: TrainingState | None = None
) -> TrainingState:
    state = state or toy.state(settings)
    for report in train_epochs(state, toy.data(), settings=settings, seed=1):
        if isinstance(report, EpochReport) and report.epoch == stop_after:
            break
    return state


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def speedless(state: TrainingState) -> list[EpochReport]:
    return [report._replace(images_per_second=0.0) for report in state.history]


def test_training_learns_what_can_be_learned() -> None:
    state = trained(toy.SETTINGS.model_copy(update={"epochs": 20, "schedule": Constant()}))
    assert state.history[-1].train_loss < 0.5 * state.history[0].train_loss
    assert state.history[-1].validation_accuracy_top1 > 0.9


def test_the_same_seed_gives_the_same_bits() -> None:
    first, second = trained(), trained()
    assert_same(first.network.state_dict(), second.network.state_dict())
    assert speedless(first) == speedless(second)


@pytest.mark.parametrize(
    "settings",
    [
        toy.SETTINGS,
        toy.SETTINGS.model_copy(update={"optimizer": AdamW(), "ema_decay": 0.9, "gradient_clip_norm": 1.0}),
    ],
    ids=["sgd", "adamw with average and clipping"],
)
def test_resumed_run_equals_uninterrupted_run(settings: TrainSettings, tmp_path: Any) -> None:
    """Stopped after the first epoch, written to a file, read by a fresh process's state."""
    whole = trained(settings)
    torch.save(trained(settings, stop_after=1).state_dict(), tmp_path / "state.pt")
    resumed = toy.state(settings, start=toy.network(seed=9))
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    trained(settings, state=resumed)
    assert_same(whole.evaluated.state_dict(), resumed.evaluated.state_dict())
    assert_same(whole.best_weights, resumed.best_weights)
    assert speedless(whole) == speedless(resumed)


def test_what_else_draws_random_numbers_does_not_matter() -> None:
    state = toy.state()
    for _ in train_epochs(state, toy.data(), settings=toy.SETTINGS, seed=1):
        torch.rand(3)
        np.random.default_rng().random()
    assert_same(state.network.state_dict(), trained().network.state_dict())


def test_every_epoch_shows_every_image_once_in_a_new_order() -> None:
    orders = [
        np.concatenate([batch.indices for batch in epoch_batches(toy.data(), 8, epoch=epoch, seed=0)])
        for epoch in range(2)
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(26))
    assert list(orders[0]) != list(orders[1])


def test_views_repeat_only_after_all_scheduled_ones() -> None:
    slots = [int(next(epoch_batches(toy.data(), 8, epoch=epoch, seed=0)).slots[0]) for epoch in range(6)]
    assert slots == [0, 1, 2, 3, 0, 1]


def test_a_single_left_over_image_is_no_batch() -> None:
    assert [len(batch.indices) for batch in epoch_batches(toy.data(), 5, epoch=0, seed=0)] == [5, 5, 5, 5, 5]


def test_the_best_epoch_is_the_first_with_the_highest_accuracy() -> None:
    state = trained(toy.SETTINGS.model_copy(update={"epochs": 6}))
    accuracies = [report.validation_accuracy_top1 for report in state.history]
    assert state.best_epoch == accuracies.index(max(accuracies)) + 1


def test_best_weights_are_those_of_the_best_epoch() -> None:
    state = trained(toy.SETTINGS.model_copy(update={"epochs": 6}))
    best = toy.network()
    best.load_state_dict(state.best_weights)
    accuracy, _ = validate(best, toy.data().validation)
    assert accuracy == max(report.validation_accuracy_top1 for report in state.history)


def test_the_step_schedule_reaches_the_optimiser() -> None:
    settings = toy.SETTINGS.model_copy(
        update={"schedule": Step(milestones=(1, 2)), "optimizer": SGD(learning_rate=0.5)}
    )
    assert [report.learning_rate for report in trained(settings).history] == pytest.approx([0.5, 0.05, 0.005])


def test_the_moving_average_is_what_is_evaluated() -> None:
    state = trained(toy.SETTINGS.model_copy(update={"ema_decay": 0.99}))
    assert state.evaluated is not state.network
    accuracy, loss = validate(state.evaluated, toy.data().validation)
    assert (accuracy, loss) == (state.history[-1].validation_accuracy_top1, state.history[-1].validation_loss)


def test_a_loss_that_is_not_finite_stops_training_by_name() -> None:
    settings = toy.SETTINGS.model_copy(update={"optimizer": SGD(learning_rate=1e30), "schedule": Constant()})
    with pytest.raises(TrainingError, match=r"epoch 1 .*; lower optimizer\.learning_rate"):
        trained(settings)


@pytest.mark.parametrize(("method", "teacher"), [(KD(), None), (CrossEntropy(), OnlineTeacher(toy.network()))])
def test_method_and_teacher_must_go_together(method: Method, teacher: OnlineTeacher | None) -> None:
    with pytest.raises(ValueError, match="do not go together"):
        toy.state(method=method, teacher=teacher)


def test_the_teacher_stays_frozen_and_in_evaluation_mode() -> None:
    network = toy.network(seed=3).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = toy.state(method=KD(), teacher=OnlineTeacher(network))
    for _ in train_epochs(state, toy.data(), settings=toy.SETTINGS, seed=0):
        pass
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert_same(network.state_dict(), before)


def test_a_teacher_switched_back_to_training_mode_is_noticed() -> None:
    network = toy.network()
    teacher = OnlineTeacher(network)
    network.train()
    with pytest.raises(AssertionError, match="training mode"):
        teacher.logits(torch.zeros(1, 3, 8, 8), np.zeros(1, np.int64), np.zeros(1, np.int64))


def test_bfloat16_trains_to_nearly_the_same_loss() -> None:
    exact, mixed = (
        trained(toy.SETTINGS.model_copy(update={"precision": precision})) for precision in ("float32", "bfloat16")
    )
    assert exact.history[-1].train_loss == pytest.approx(mixed.history[-1].train_loss, rel=0.05)
    assert exact.history[-1].train_loss != mixed.history[-1].train_loss


def test_reports_come_inside_long_epochs() -> None:
    settings = toy.SETTINGS.model_copy(update={"batch_size": 1, "epochs": 1})
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, toy.NUM_CLASSES))
    state = toy.state(settings, start=network)
    reports = list(train_epochs(state, toy.data(), settings=settings, seed=0))
    assert [type(report) for report in reports] == [StepReport, EpochReport]
    assert reports[0].num_images == 20  # type: ignore[union-attr]
    assert math.isfinite(reports[0].images_per_second)


def test_networks_trained_together_come_out_as_if_trained_alone() -> None:
    """Bit for bit, whatever trains beside them: other losses, other lengths, one of them resumed."""
    longer = toy.SETTINGS.model_copy(update={"epochs": 4, "optimizer": AdamW()})
    ahead = trained(stop_after=1)
    together = [
        Trainee(toy.state(), toy.SETTINGS),
        Trainee(toy.state(longer, start=toy.network(seed=5)), longer),
        Trainee(ahead, toy.SETTINGS),
    ]
    ends = [(number, report.epoch) for number, report in train_together(together, toy.data(), seed=1)
            if isinstance(report, EpochReport)]  # fmt: skip
    assert sorted(ends) == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3), (1, 4), (2, 2), (2, 3)]
    alone = trained()
    assert_same(together[0].state.network.state_dict(), alone.network.state_dict())
    assert_same(together[2].state.network.state_dict(), alone.network.state_dict())
    assert_same(
        together[1].state.network.state_dict(),
        trained(longer, state=toy.state(longer, start=toy.network(seed=5))).network.state_dict(),
    )
    assert speedless(together[0].state) == speedless(alone)


def test_networks_that_cannot_share_batches_are_not_trained_together() -> None:
    other = toy.SETTINGS.model_copy(update={"batch_size": 4})
    with pytest.raises(ValueError, match="share batch size"):
        next(train_together([Trainee(toy.state(), toy.SETTINGS), Trainee(toy.state(other), other)], toy.data(), seed=1))
