"""Where the time of a training step on a CPU goes: by phase from clocks, by kind of operation from torch's profiler."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

from torch.profiler import ProfilerActivity, profile

from compress.batches import TrainingData
from compress.teacher_logits import TeacherAnswers
from compress.train import train_together
from compress.training_state import EpochReport, Trainee
from compress.types import FloatImages, IndexArray, Logits

KERNELS = ("mkldnn_convolution", "convolution_backward", "cudnn_convolution", "addmm", "aten::mm")
OPTIMIZER = ("_fused_sgd", "_fused_adamw", "Optimizer.")
NORMALISATION = ("batch_norm",)
LOSS = ("log_softmax", "nll_loss", "cross_entropy", "logsumexp")
PHASES = ("data", "teacher", "forward", "loss", "backward", "optimizer")


class Phases:
    """Seconds of each phase of the steps of one network, noted by hooks; what no hook covers is data and Python."""

    def __init__(self, trainee: Trainee) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._before = 0.0
        state = trainee.state
        self._handles = [
            state.learner.register_forward_pre_hook(lambda *_: self._note(None)),
            state.network.register_forward_pre_hook(lambda *_: self._note("loss")),
            state.network.register_forward_hook(lambda *_: self._note("forward")),
            state.learner.register_forward_hook(lambda *_: self._note("loss")),
            state.optimizer.register_step_pre_hook(lambda *_: self._note("backward")),
            state.optimizer.register_step_post_hook(lambda *_: self._note("optimizer")),
        ]

    def _note(self, phase: str | None) -> None:
        now = time.perf_counter()
        if phase is not None:
            self.seconds[phase] += now - self._before
        self._before = now

    def stop(self) -> None:
        """Remove the hooks, which hold on to the network."""
        for handle in self._handles:
            handle.remove()


class TimedAnswers(TeacherAnswers):
    """A teacher with a clock."""

    def __init__(self, answers: TeacherAnswers) -> None:
        self._answers = answers
        self.seconds = 0.0

    def logits(self, images: FloatImages, indices: IndexArray, slots: IndexArray) -> Logits:
        started = time.perf_counter()
        logits = self._answers.logits(images, indices, slots)
        self.seconds += time.perf_counter() - started
        return logits


def phases_of_a_step(trainee: Trainee, answers: TimedAnswers, data: TrainingData, *, num_epochs: int) -> dict[str, Any]:
    """Milliseconds of each phase of a step, a mean over epochs after one that warms up."""
    reports = train_together([trainee], data, seed=0)
    _one_epoch(reports)
    phases = Phases(trainee)
    answers.seconds = 0.0
    started = time.perf_counter()
    for _ in range(num_epochs):
        _one_epoch(reports)
    total = time.perf_counter() - started
    phases.stop()
    phases.seconds["teacher"] = answers.seconds
    phases.seconds["loss"] -= answers.seconds
    phases.seconds["data"] = total - sum(phases.seconds.values())
    num_steps = num_epochs * -(-len(data.train) // trainee.settings.batch_size)
    return {
        "ms": {phase: round(1000 * phases.seconds[phase] / num_steps, 3) for phase in PHASES},
        "shares": {phase: round(phases.seconds[phase] / total, 4) for phase in PHASES},
    }


def kinds_of_operations(trainee: Trainee, data: TrainingData) -> dict[str, Any]:
    """Shares of an epoch's CPU time by kind of operation; what is no operation of torch's is in none of them."""
    reports = train_together([trainee], data, seed=0)
    _one_epoch(reports)  # warm
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        _one_epoch(reports)
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    total = sum(times.values())
    shares = {
        "convolution_and_matrix": _share(times, KERNELS) / total,
        "normalisation": _share(times, NORMALISATION) / total,
        "optimizer": _share(times, OPTIMIZER) / total,
        "loss": _share(times, LOSS) / total,
    }
    shares["other"] = 1.0 - sum(shares.values())
    largest = sorted(times.items(), key=lambda item: -item[1])[:10]
    return {
        "shares": {name: round(value, 4) for name, value in shares.items()},
        "largest": {name: round(value / total, 4) for name, value in largest},
    }


def _one_epoch(reports: Any) -> None:
    for _, report in reports:
        if isinstance(report, EpochReport):
            return


def _share(times: dict[str, float], names: tuple[str, ...]) -> float:
    return sum(value for key, value in times.items() if any(name in key for name in names))
