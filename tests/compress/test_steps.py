"""Steps that are recorded and replayed are the steps themselves; what can not be recorded is stepped without.

There is no GPU here. A stand-in keeps the function that would be recorded and runs it at every replay, so that all but
torch's own recording is the code that runs on a GPU.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import pytest
import torch
from torch import nn

from compress import train
from compress.cuda_graph import NotRecordableError, Recorder, StaticBatch, obstacle, record_step
from compress.data.mixing import Mixing
from compress.kept_state import Kept
from compress.methods import DKD, USKD, WTTM, CrossEntropy, Method, TeacherMethod
from compress.methods.base import Alone, FeatureShapes
from compress.objective import SelfFeatureObjective
from compress.optimization import SGD, AdamW
from compress.steps import Steps
from compress.teacher_logits import OnlineTeacher
from compress.train import train_epochs, train_together
from compress.training_state import EpochReport, Trainee, TrainingState, TrainSettings
from tests.compress import toy, toy_store
from tests.compress.test_micro_batches import batch


@final
class StandIn(Recorder):
    """Records by keeping the function."""

    def __init__(self) -> None:
        self.num_replays = 0
        self.num_recordings = 0

    def warm_up(self, function: Callable[[], None]) -> None:
        function()
        function()

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        self.num_recordings += 1

        def replay() -> None:
            self.num_replays += 1
            function()

        return replay


@final
class Broken(Recorder):
    """Records something else than the step, or nothing at all."""

    def __init__(self, replay: Callable[[], None] | None) -> None:
        self.replay = replay

    def warm_up(self, function: Callable[[], None]) -> None:
        function()

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        if self.replay is None:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nlong explanation")
        return self.replay


def without_dropout(seed: int = 0) -> nn.Module:
    made = toy.network(seed)
    made[3] = nn.Identity()  # type: ignore[index]
    return made


SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adamw with average and clipping": {"optimizer": AdamW(), "ema_decay": 0.9, "gradient_clip_norm": 1.0},
    "mixed": {"mixing": Mixing(mixup_alpha=0.8, cutmix_alpha=1.0), "ema_decay": 0.9},
    "no momentum": {"optimizer": SGD(momentum=0.0)},
    "in pieces": {"micro_batch_size": 3},
}


def begun(settings: TrainSettings, method: Method | None = None, seed: int = 0) -> TrainingState:
    method = method or WTTM()
    teacher = OnlineTeacher(toy.network(3)) if isinstance(method, TeacherMethod) else None
    return toy.state(settings, start=without_dropout(seed), method=method, teacher=teacher)


def trained(settings: TrainSettings, method: Method | None = None) -> TrainingState:
    state = begun(settings, method)
    for _ in train_epochs(state, toy.data(), settings=settings, seed=1):
        pass
    return state


def assert_close(first: TrainingState, second: TrainingState) -> None:
    """A learning rate in a float32 tensor is off by its last bit; AdamW makes a step even of a gradient of rounding."""
    for part in ("network", "average", "optimizer"):
        one, other = first.state_dict()[part], second.state_dict()[part]
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    for report, expected in zip(first.history, second.history, strict=True):
        assert report[:-1] == pytest.approx(expected[:-1], rel=1e-4)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Training records with the stand-in."""
    stand_in = StandIn()
    monkeypatch.setattr(train, "Steps", lambda trainees, _, ranks: Steps(trainees, stand_in, ranks))
    return stand_in


@pytest.mark.parametrize("method", [WTTM(), CrossEntropy(), DKD()], ids=lambda method: method.name)
@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_a_recorded_training_is_the_training_itself(
    changes: dict[str, Any], method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = toy.SETTINGS.model_copy(update=changes)
    expected = trained(settings, method)
    stand_in = StandIn()
    monkeypatch.setattr(train, "Steps", lambda trainees, _, ranks: Steps(trainees, stand_in, ranks))
    assert_close(trained(settings, method), expected)
    # Three epochs of three full batches, the first of all without; one replay was the comparison.
    assert stand_in.num_replays == 3 * 3 - 1 + 1


def test_several_networks_are_recorded_once_each_and_do_not_touch_each_other(recorder: StandIn) -> None:
    settings = [toy.SETTINGS, toy.SETTINGS.model_copy(update={"optimizer": AdamW(), "epochs": 2})]
    together = [Trainee(begun(each, seed=number), each) for number, each in enumerate(settings)]
    for _ in train_together(together, toy.data(), seed=1):
        pass
    assert recorder.num_recordings == 2
    for number, (state, each) in enumerate(together):
        alone = begun(each, seed=number)
        for _ in train_epochs(alone, toy.data(), settings=each, seed=1):
            pass
        assert_close(state, alone)


def test_recorded_steps_read_stored_answers(recorder: StandIn, tmp_path: Path) -> None:
    toy_store.write(tmp_path)

    def run(settings: TrainSettings) -> TrainingState:
        state = toy.state(settings, start=without_dropout(), method=WTTM(), teacher=toy_store.opened(tmp_path))
        for _ in train_epochs(state, toy.data(), settings=settings, seed=1):
            pass
        return state

    assert_close(run(toy.SETTINGS), run(toy.SETTINGS.model_copy(update={"cuda_graph": "off"})))
    assert recorder.num_recordings == 1


def test_a_resumed_recorded_training_goes_on(recorder: StandIn) -> None:
    settings = toy.SETTINGS.model_copy(update={"optimizer": AdamW(), "ema_decay": 0.9})
    whole, stopped = trained(settings), begun(settings)
    for report in train_epochs(stopped, toy.data(), settings=settings, seed=1):
        if isinstance(report, EpochReport):
            break
    resumed = begun(settings, seed=9)
    resumed.load_state_dict(stopped.state_dict())
    assert isinstance(resumed.optimizer.param_groups[0]["lr"], float)
    for _ in train_epochs(resumed, toy.data(), settings=settings, seed=1):
        pass
    assert_close(resumed, whole)
    assert recorder.num_recordings == 3


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_recording_leaves_the_training_state_as_it_is(changes: dict[str, Any]) -> None:
    settings = toy.SETTINGS.model_copy(update={**changes, "mixing": None})
    state = begun(settings)
    steps = Steps([Trainee(state, settings)], None)
    steps.take(0, batch(8), train.Moment(1, 0, 0, 4))
    before = Kept(state)
    rates = [group["lr"] for group in state.optimizer.param_groups]
    random = torch.get_rng_state()
    record_step(Trainee(state, settings), batch(8), StaticBatch(batch(8)), StandIn())
    assert set(before.errors(before.now()).values()) == {0.0}
    assert [group["lr"] for group in state.optimizer.param_groups] == rates
    assert not any(group.get("capturable") for group in state.optimizer.param_groups)
    assert torch.equal(torch.get_rng_state(), random)
    assert state.average is None or int(state.average.n_averaged) == 1


def warm(settings: TrainSettings = toy.SETTINGS, start: nn.Module | None = None) -> Trainee:
    """A trainee that has taken a step."""
    state = toy.state(settings, start=start or without_dropout(), method=CrossEntropy())
    Steps([Trainee(state, settings)], None).take(0, batch(8), train.Moment(1, 0, 0, 4))
    return Trainee(state, settings)


@pytest.mark.parametrize(
    ("replay", "reason"),
    [
        (None, r"^CUDA error: operation not permitted when stream is capturing$"),
        (lambda: None, r"its loss is \[.*that of the step itself"),
    ],
    ids=["an error of the device", "a replay that does nothing"],
)
def test_what_is_not_the_step_is_refused(replay: Callable[[], None] | None, reason: str) -> None:
    trainee = warm()
    before = Kept(trainee.state)
    with pytest.raises(NotRecordableError, match=reason):
        record_step(trainee, batch(8), StaticBatch(batch(8)), Broken(replay))
    assert set(before.errors(before.now()).values()) == {0.0}


def test_a_replay_of_the_batch_it_was_recorded_with_is_refused() -> None:
    """As if the recording had copied the batch instead of reading where it lies."""
    trainee = warm()
    static = StaticBatch(batch(8))

    class Stale(Recorder):
        def warm_up(self, function: Callable[[], None]) -> None:
            function()

        def record(self, function: Callable[[], None]) -> Callable[[], None]:
            images = static.images.clone()

            def replay() -> None:
                static.images.copy_(images)
                function()

            return replay

    with pytest.raises(NotRecordableError, match=r"its loss is|otherwise than the step itself"):
        record_step(trainee, batch(8), static, Stale())


def test_networks_that_draw_random_numbers_are_refused() -> None:
    trainee = warm(start=toy.network())
    with pytest.raises(NotRecordableError, match="draws random numbers"):
        record_step(trainee, batch(8), StaticBatch(batch(8)), StandIn())


def test_without_a_recording_training_goes_on_after_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "Steps", lambda trainees, _, ranks: Steps(trainees, StandIn(), ranks))

    def run() -> TrainingState:
        state = toy.state()  # its network has dropout
        for _ in train_epochs(state, toy.data(), settings=toy.SETTINGS, seed=1):
            pass
        return state

    with pytest.warns(UserWarning, match="without a CUDA graph.*draws random numbers") as caught:
        recorded = run()
    assert len(caught) == 1
    monkeypatch.undo()
    for name, value in run().network.state_dict().items():
        assert torch.equal(value, recorded.network.state_dict()[name]), name


def test_the_setting_switches_recording_off(recorder: StandIn) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(toy.SETTINGS.model_copy(update={"cuda_graph": "off"}))
    assert recorder.num_recordings == 0


def test_methods_with_a_memory_loss_scaling_and_several_processes_are_obstacles() -> None:
    trainee = warm()
    assert obstacle(trainee) is None
    wrapped = replace(trainee.state, learner=nn.Sequential(trainee.state.learner))
    assert obstacle(trainee._replace(state=wrapped)) == "several processes train together"
    scaled = replace(trainee.state, scaler=torch.amp.GradScaler("cpu"))
    assert obstacle(trainee._replace(state=scaled)) == "float16 needs a loss scale that changes"
    objective = SelfFeatureObjective(USKD().build(Alone(FeatureShapes(4, ((4, 8, 8), (8, 4, 4)), (8, 4, 4), ()), 3)))
    featured = replace(trainee.state, objective=objective)
    assert obstacle(trainee._replace(state=featured)) == "the method compares features"
