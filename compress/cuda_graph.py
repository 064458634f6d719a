"""A training step recorded once as a CUDA graph and replayed with new batches.

A step on CIFAR images is hundreds of kernels of a few microseconds each; launching them one by one takes several times
as long as running them. A graph launches all of them at once: forward and backward pass, optimiser, moving average. It
reads batch, teacher logits and learning rate from tensors that stay where they are.

A recorded step draws no random numbers: for a network with dropout every replay would depend on how many were before,
and not on (seed, epoch, step) alone. Such networks, and methods that remember, are stepped one kernel at a time.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import final

import numpy as np
import torch
from torch import Tensor

from compress.kept_state import Kept
from compress.micro_batches import micro_batches
from compress.objective import LabelsObjective, LogitObjective, StepInput, Taught
from compress.optimization import move_average_
from compress.training_state import Learner, Trainee, TrainingState
from compress.training_step import learn_
from compress.types import LossTerms

WARM_UPS = 3
"""Steps before a recording: libraries set themselves up and choose algorithms in the first ones."""
UPDATE_TOLERANCE = 0.02
"""Largest difference of an update, relative to it, between a replay and the step itself. Both run the same kernels;
where these add up in no fixed order, bfloat16 rounds to neighbouring values now and then. A mistake gives 1."""
LOSS_TOLERANCE = 1e-3


class NotRecordableError(Exception):
    """A step that can not become a graph; the message says why. It is taken without one, so that no user sees this."""


class Recorder(ABC):
    """A device that can record what it is given to do."""

    @abstractmethod
    def warm_up(self, function: Callable[[], None]) -> None:
        """Run a function several times as it will be recorded.

        Raises:
            RuntimeError: it waits for the device, which no recording can.
        """

    @abstractmethod
    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record what a function gives the device to do, without doing it; the result does it.

        Raises:
            RuntimeError: it can not be recorded.
        """


@final
class GpuRecorder(Recorder):
    """Records CUDA graphs."""

    def warm_up(self, function: Callable[[], None]) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                function()
            with _no_waiting():
                function()
        torch.cuda.current_stream().wait_stream(side)

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # Other threads may copy batches meanwhile; only what this one does has to fit into a graph.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            function()
        return graph.replay


@contextmanager
def _no_waiting() -> Generator[None]:
    """Whatever makes the host wait for the GPU is an error: found here it costs nothing, in a recording much."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it may overlook some; a recording finds those
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@final
class StaticBatch:
    """Where recorded steps read their batch; the networks that train side by side share it."""

    def __init__(self, batch: StepInput) -> None:
        self.images = torch.empty_like(batch.images)
        self.labels = torch.empty_like(batch.labels)
        self._filled_from: Tensor | None = None

    def fits(self, batch: StepInput) -> bool:
        """Whether a batch has the recorded shape; the last one of an epoch may be smaller."""
        return (batch.images.shape, batch.labels.shape, batch.labels.dtype) == (
            self.images.shape,
            self.labels.shape,
            self.labels.dtype,
        )

    def fill_(self, batch: StepInput) -> None:
        """Copy a batch in, once for all networks."""
        if self._filled_from is not batch.images:
            self.images.copy_(batch.images)
            self.labels.copy_(batch.labels)
            self._filled_from = batch.images

    def fill_otherwise_(self) -> None:
        """Give the labels the images of other ones: a batch that nothing was recorded with."""
        self.images.copy_(self.images.roll(1, dims=0))
        self._filled_from = None


@final
class RecordedStep:
    """The step of one network as a graph; made by `record_step`."""

    def __init__(self, trainee: Trainee, static: StaticBatch, taught: Taught | None) -> None:
        self._trainee = trainee
        self._static = static
        self._taught = taught
        self._rate = torch.zeros((), device=static.images.device)
        self._terms: LossTerms | None = None
        self._replay: Callable[[], None] | None = None

    def fits(self, batch: StepInput) -> bool:
        """Whether a batch has the recorded shape."""
        return self._static.fits(batch)

    def take(self, batch: StepInput, learning_rate: float) -> LossTerms:
        """One step; the terms are valid until the next one."""
        state = self._trainee.state
        assert self._replay is not None
        assert self._terms is not None
        self._static.fill_(batch)
        if self._taught is not None:
            fill_taught_(self._taught, state, batch)
        self._rate.fill_(learning_rate)
        self._replay()
        if state.average is not None:
            state.average.n_averaged += 1
        return self._terms

    def record_(self, recorder: Recorder) -> None:
        """Warm up, record, compare; the training state is the same afterwards.

        Raises:
            NotRecordableError: the network draws random numbers, or the replay is not the step.
            RuntimeError: the device can not record it.
        """
        kept = Kept(self._trainee.state)
        try:
            before = _random_states(self._rate.device)
            recorder.warm_up(self._run)
            if any(not torch.equal(*pair) for pair in zip(before, _random_states(self._rate.device), strict=True)):
                raise NotRecordableError("the network or the method draws random numbers")
            kept.restore_()
            with _capturable(self._trainee.state.optimizer):
                self._replay = recorder.record(self._run)
            self._compare(kept)
        finally:
            kept.restore_()

    def _compare(self, kept: Kept) -> None:
        assert self._replay is not None
        self._static.fill_otherwise_()
        self._rate.fill_(self._trainee.settings.optimizer.learning_rate)
        recorded = self._terms
        self._run()
        expected_terms, expected = torch.stack(self._current_terms()).clone(), kept.now()
        self._terms = recorded  # what the replay writes to
        kept.restore_()
        self._replay()
        terms = torch.stack(self._current_terms())
        if not torch.allclose(terms, expected_terms, rtol=LOSS_TOLERANCE, atol=LOSS_TOLERANCE):
            raise NotRecordableError(f"its loss is {terms.tolist()}, that of the step itself {expected_terms.tolist()}")
        for name, error in kept.errors(expected).items():
            if not error <= UPDATE_TOLERANCE:
                raise NotRecordableError(f"it changes the {name} otherwise than the step itself, by {error:.2g} of it")

    def _current_terms(self) -> LossTerms:
        assert self._terms is not None
        return self._terms

    def _run(self) -> None:
        """The work of the step, on what lies in the static tensors."""
        state, settings = self._trainee
        images, labels = self._static.images, self._static.labels
        unread = np.arange(len(labels), dtype=np.int64)  # places are what `taught` was asked about
        batch = StepInput(images, labels, unread, unread, 0, unread, None, self._taught)
        with _learning_rate(state.optimizer, self._rate):
            self._terms = learn_(self._trainee, micro_batches(batch, settings.micro_batch_size))
        if state.average is not None:
            move_average_(state.average, state.network)


def obstacle(trainee: Trainee) -> str | None:
    """Why the steps of a network can not be recorded, as far as that shows beforehand."""
    state = trainee.state
    if not isinstance(state.learner, Learner):
        return "several processes train together"
    if state.scaler.is_enabled():
        return "float16 needs a loss scale that changes"
    if not isinstance(state.objective, LabelsObjective | LogitObjective):
        return "the method compares features"
    return None


def record_step(trainee: Trainee, batch: StepInput, static: StaticBatch, recorder: Recorder) -> RecordedStep:
    """Record the step of a network that has taken at least one; its training state stays as it is.

    Raises:
        NotRecordableError: it can not be recorded, or the replay is not the step.
    """
    reason = obstacle(trainee)
    if reason is not None:
        raise NotRecordableError(reason)
    static.fill_(batch)
    taught = None
    if isinstance(trainee.state.objective, LogitObjective):
        logits = torch.empty_like(trainee.state.objective.taught(batch))
        taught = Taught(logits, torch.zeros((), device=logits.device))
        fill_taught_(taught, trainee.state, batch)
    step = RecordedStep(trainee, static, taught)
    try:
        step.record_(recorder)
    except RuntimeError as error:  # torch's own: out of memory, a wait for the device, an operation without a graph
        raise NotRecordableError(str(error).partition("\n")[0]) from error
    return step


def fill_taught_(taught: Taught, state: TrainingState, batch: StepInput) -> None:
    """Put the teacher's answers to a batch where the recorded step reads them."""
    objective = state.objective
    assert isinstance(objective, LogitObjective)
    taught.logits.copy_(objective.taught(batch))
    taught.factor.fill_(objective.method.ramp(batch.epoch))


def _random_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


@contextmanager
def _learning_rate(optimizer: torch.optim.Optimizer, rate: Tensor) -> Generator[None]:
    """The optimiser reads its rate from a tensor; checkpoints and reports still see the number."""
    numbers = [group["lr"] for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            group["lr"] = rate
        yield
    finally:
        for group, number in zip(optimizer.param_groups, numbers, strict=True):
            group["lr"] = number


@contextmanager
def _capturable(optimizer: torch.optim.Optimizer) -> Generator[None]:
    """AdamW wants to be told that it is recorded; told so at other times it warns."""
    groups = [group for group in optimizer.param_groups if "capturable" in group]
    try:
        for group in groups:
            group["capturable"] = True
        yield
    finally:
        for group in groups:
            group["capturable"] = False
