"""Training one network on several ranks, with the results of one.

Each rank runs its part of every batch through the networks. Batch normalisation takes its statistics from all parts.
Then each rank gathers what all have heard and compares the whole batch, because a loss may compare images with each
other or remember them: every rank has the same loss, bit for bit on equal hardware. Its gradient goes back through the
rank's own part, and DistributedDataParallel adds the gradients of all.

What differs from one rank is the order of sums, about 1e-7 of a value, and the masks of dropout: each rank draws its
own. The same number of ranks gives the same bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import count
from typing import Any, TypeVar, cast, final

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from compress.errors import ParamsError
from compress.objective import Heard, Objective, StepInput
from compress.ranks import Ranks, gathered
from compress.synchronized_norm import SynchronizedNorm
from compress.types import LossTerms

V = TypeVar("V")


def shared_learner(network: nn.Module, objective: Objective, ranks: Ranks) -> DistributedDataParallel:
    """A module that takes a rank's part of a batch and returns the loss of the whole; its weights are the first rank's.

    Its gradients are those of the whole batch on every rank, once `backward` has returned.
    """
    learner = SharedLearner(network, objective, ranks)
    for buffer in learner.buffers():
        dist.broadcast(buffer, src=0)  # once; afterwards all ranks make the same of them
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.14 has a new word for it that 2.11 does not know
        # Looking for unused parameters also keeps the buckets as they are: otherwise they are arranged anew after the
        # first step, sums are made in another order, and a resumed run would not go on to the same bits.
        return DistributedDataParallel(learner, broadcast_buffers=False, find_unused_parameters=True)


def check_batch_size(batch_size: int, ranks: Ranks) -> None:
    """Raise ParamsError if ranks would have nothing to do."""
    if ranks.num_ranks > 1 and not ranks.divides(batch_size):
        raise ParamsError(
            f"train.batch_size: {batch_size} is the batch of all {ranks.num_ranks} ranks together, and each takes two "
            f"images at least; set it to {2 * ranks.num_ranks} or more, or start fewer ranks"
        )


@final
class SharedLearner(nn.Module):
    """A network with what it is to learn, one of several ranks."""

    def __init__(self, network: nn.Module, objective: Objective, ranks: Ranks) -> None:
        super().__init__()
        self.network = network
        self.objective = objective
        self._ranks = ranks
        self._needed: set[int] | None = None
        """Which of the tensors that the networks give the loss uses; known after the first step."""

    def forward(self, batch: StepInput, dtype: torch.dtype) -> LossTerms:
        if not self._ranks.divides(len(batch.whole)):
            return self.objective(self.network, batch, dtype)
        whole = whole_batch(self._ranks, len(batch.whole), batch.images.device)
        with _own_random_numbers(self._ranks, batch.images.device), SynchronizedNorm():
            heard = self.objective.ask(self.network, batch, dtype)
        batch = batch._replace(labels=whole.of(batch.labels), indices=batch.whole, places=None)
        heard = _gathered(heard, whole, self._needed)
        if self._needed is not None:
            return self.objective.compare(heard, batch)
        with _Looking(heard) as looking:
            terms = self.objective.compare(heard, batch)
        self._needed = looking.needed
        return terms


@final
@dataclass(frozen=True)
class WholeBatch:
    """A batch of which each rank has a part."""

    ranks: Ranks
    num_images: int
    device: torch.device

    def of(self, own: Tensor) -> Tensor:
        """The rows of all ranks in the order of the batch; the gradient goes to the rank's own."""
        return cast(Tensor, _Gather.apply(own, self))

    @property
    def _places(self) -> list[np.ndarray]:
        return [self.ranks.places(rank, self.num_images) for rank in range(self.ranks.num_ranks)]

    @property
    def most(self) -> int:
        """Images of the rank that has most; the others send as many rows."""
        return max(len(places) for places in self._places)

    @cached_property
    def rows(self) -> Tensor:
        """Where each image of the batch stands among the rows that the ranks have sent."""
        rows = np.empty(self.num_images, dtype=np.int64)
        for rank, places in enumerate(self._places):
            rows[places] = rank * self.most + np.arange(len(places))
        return torch.from_numpy(rows).to(self.device)

    @cached_property
    def own_places(self) -> Tensor:
        """Places of this rank's images in the batch."""
        return torch.from_numpy(self._places[self.ranks.rank]).to(self.device)


@lru_cache(maxsize=16)
def whole_batch(ranks: Ranks, num_images: int, device: torch.device) -> WholeBatch:
    """Made once for each size, because its places have to be copied to the device."""
    return WholeBatch(ranks, num_images, device)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, whole: WholeBatch) -> Tensor:
        ctx.whole = whole
        sent = own if len(own) == whole.most else torch.cat([own, own.new_zeros(whole.most - len(own), *own.shape[1:])])
        return gathered(sent).flatten(0, 1)[whole.rows]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # Times the number of ranks, because DistributedDataParallel takes the mean: the network's gradients have to
        # add up, while those of the objective's own parameters, the same on all ranks, come out as they are.
        return gradients[0][ctx.whole.own_places] * ctx.whole.ranks.num_ranks, None


def _gathered(heard: Heard, whole: WholeBatch, needed: set[int] | None) -> Heard:
    """The answers of all ranks; those tensors that are not needed stay behind, without any rows."""
    numbers = count()

    def gather(own: Tensor) -> Tensor:
        is_needed = needed is None or next(numbers) in needed
        return whole.of(own) if is_needed else own.new_empty(0, *own.shape[1:])

    return _changed(heard, gather)


def _changed(value: V, change: Callable[[Tensor], Tensor]) -> V:
    """The same tuples of tuples with every tensor changed, in the order of `_tensors`."""
    if isinstance(value, Tensor):
        return cast(V, change(value))
    if not isinstance(value, tuple):
        return value
    parts = [_changed(part, change) for part in cast("tuple[Any, ...]", value)]
    return cast(V, tuple(parts) if type(value) is tuple else type(value)(*parts))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in cast("tuple[Any, ...]", value):
            yield from _tensors(part)


@final
class _Looking(TorchFunctionMode):
    """Sees which of the tensors that a loss is given it uses; feature maps are large, and most losses want few."""

    def __init__(self, heard: Heard) -> None:
        super().__init__()
        self.needed: set[int] = set()
        self._numbers = {id(tensor): number for number, tensor in enumerate(_tensors(heard))}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        used = (id(tensor) for tensor in _tensors((*args, *(kwargs or {}).values())))
        self.needed |= {self._numbers[each] for each in used if each in self._numbers}
        return func(*args, **(kwargs or {}))


@contextmanager
def _own_random_numbers(ranks: Ranks, device: torch.device) -> Generator[None]:
    """Dropout draws other numbers on each rank; the numbers that the loss draws afterwards are those of one rank."""
    seeds = np.random.SeedSequence((torch.initial_seed(), ranks.rank)).generate_state(1, np.uint64)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(seeds[0] >> 1))
        yield
