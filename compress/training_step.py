"""One optimiser step of one network."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from compress.device import resolve_precision
from compress.micro_batches import share
from compress.objective import StepInput
from compress.optimization import set_learning_rate_, update_average_
from compress.training_state import Trainee, TrainingState
from compress.types import LossTerms


def take_step(trainee: Trainee, pieces: list[StepInput], *, progress: float) -> LossTerms:
    """One optimiser step on a batch in one or more pieces, `progress` epochs into the run; the terms are detached."""
    state = trainee.state
    set_learning_rate_(state.optimizer, learning_rate(trainee, progress))
    terms = learn_(trainee, pieces)
    if state.average is not None:
        update_average_(state.average, state.network)
    return terms


def learning_rate(trainee: Trainee, progress: float) -> float:
    """The rate `progress` epochs into the run; lower where the training was set back."""
    state, settings = trainee
    scheduled = settings.optimizer.learning_rate * settings.schedule.factor(progress, settings.epochs)
    return scheduled * state.setbacks.rate_factor


def learn_(trainee: Trainee, pieces: list[StepInput]) -> LossTerms:
    """Gradients and the optimiser's update; nothing here waits for a device."""
    state, settings = trainee
    state.network.train()
    state.optimizer.zero_grad(set_to_none=True)
    terms = _backward(state, pieces, resolve_precision(settings.precision, pieces[0].images.device))
    if settings.gradient_clip_norm is not None:
        state.scaler.unscale_(state.optimizer)
        trained = [*state.network.parameters(), *state.objective.parameters()]
        nn.utils.clip_grad_norm_(trained, settings.gradient_clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    return terms


def _backward(state: TrainingState, pieces: list[StepInput], dtype: torch.dtype) -> LossTerms:
    """Add up the gradients of the pieces; the terms are those of the whole batch."""
    if len(pieces) == 1:
        terms = state.learner(pieces[0], dtype)
        state.scaler.scale(terms.total).backward()
        return LossTerms(terms.hard.detach(), terms.soft.detach())
    sums = torch.zeros(2, device=pieces[0].images.device)
    for number, piece in enumerate(pieces):
        part = share(piece, pieces)
        with nullcontext() if number == len(pieces) - 1 else _apart(state.learner):
            terms = state.learner(piece, dtype)
            state.scaler.scale(terms.total * part).backward()
        sums += torch.stack([terms.hard.detach(), terms.soft.detach()]) * part
    return LossTerms(sums[0], sums[1])


def _apart(learner: nn.Module) -> AbstractContextManager[None]:
    """While it is entered, ranks keep their gradients to themselves: the last piece sends those of all."""
    return learner.no_sync() if isinstance(learner, DistributedDataParallel) else nullcontext()


@contextmanager
def seeded(seed: int, epoch: int, step: int, device: torch.device) -> Generator[None]:
    """Dropout and the like draw from (seed, epoch, step); the caller's generators stay as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence((seed, epoch, step)).generate_state(1, np.uint64)[0] >> 1))
        yield
