"""The steps of networks that train side by side, each taken the fastest way that it can be."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple, final

from compress.cuda_graph import NotRecordableError, RecordedStep, Recorder, StaticBatch, record_step
from compress.micro_batches import micro_batches
from compress.objective import StepInput
from compress.optimization import set_learning_rate_
from compress.ranks import ALONE, Ranks
from compress.training_state import Trainee
from compress.training_step import learning_rate, seeded, take_step
from compress.types import LossTerms


class Moment(NamedTuple):
    """When a step is taken; all that is random follows from seed, epoch and step."""

    seed: int
    epoch: int
    """Counted from 0."""
    step: int
    """Within the epoch, counted from 0."""
    num_steps: int
    """Of the epoch."""

    @property
    def progress(self) -> float:
        """Epochs since the beginning."""
        return self.epoch + self.step / self.num_steps


@final
class Steps:
    """Takes steps; with a recorder, from a network's second full batch on as a recording.

    The first one makes the optimiser's state, which a recording refers to. What can not be recorded is stepped
    without, after one warning. The terms that a step returns are valid until the network's next one.
    """

    def __init__(self, trainees: Sequence[Trainee], recorder: Recorder | None, ranks: Ranks = ALONE) -> None:
        self._trainees = trainees
        self._recorder = recorder
        self._ranks = ranks
        self._static: StaticBatch | None = None
        self._recorded: dict[int, RecordedStep | None] = {}
        """None: tried in vain, or not to be tried."""
        self._begun: set[int] = set()
        self._pieces: tuple[StepInput, int | None, list[StepInput]] | None = None

    def take(self, number: int, batch: StepInput, moment: Moment) -> LossTerms:
        """One step of the trainee in place `number`; the terms come back detached."""
        trainee = self._trainees[number]
        recorded = self._recording(number, batch)
        if recorded is not None:
            rate = learning_rate(trainee, moment.progress)
            set_learning_rate_(trainee.state.optimizer, rate)
            return recorded.take(batch, rate)
        pieces = self._pieces_of(batch, trainee.settings.micro_batch_size)
        with seeded(moment.seed, moment.epoch, moment.step, batch.images.device):
            return take_step(trainee, pieces, progress=moment.progress)

    def _recording(self, number: int, batch: StepInput) -> RecordedStep | None:
        if self._recorder is None or self._trainees[number].settings.cuda_graph == "off":
            return None
        if len(batch.whole) != self._trainees[number].settings.batch_size:
            return None
        if number not in self._begun:
            self._begun.add(number)
            return None
        if number not in self._recorded:
            self._recorded[number] = self._made(number, batch, self._recorder)
        recorded = self._recorded[number]
        return recorded if recorded is not None and recorded.fits(batch) else None

    def _made(self, number: int, batch: StepInput, recorder: Recorder) -> RecordedStep | None:
        if self._static is None or not self._static.fits(batch):
            self._static = StaticBatch(batch)
        try:
            return record_step(self._trainees[number], batch, self._static, recorder)
        except NotRecordableError as error:
            warnings.warn(f"steps run without a CUDA graph, which is slower for small networks: {error}", stacklevel=2)
            return None

    def _pieces_of(self, batch: StepInput, size: int | None) -> list[StepInput]:
        """Cut once for all networks, so that a live teacher is asked once about each piece."""
        if self._pieces is None or self._pieces[0] is not batch or self._pieces[1] != size:
            self._pieces = batch, size, micro_batches(batch, size, self._ranks)
        return self._pieces[2]
