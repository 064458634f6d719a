"""This process among those that torchrun started: who it is, which part of each batch is its own, what all agree on.

A rank is one process with one device. Without torchrun there is one, and nothing here has an effect.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, final

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]  documented

from compress.errors import CompressError, DeviceError, TrainingError
from compress.types import IndexArray

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long ranks wait for one another. Where one has died, torchrun ends the others at once; this is for one that
hangs, and longer than the first may take to verify a large store."""
POLL_SECONDS = 0.02
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused", "Timed out")
"""What gloo says, in a plain RuntimeError, when another rank is gone."""


@final
@dataclass(frozen=True)
class Ranks:
    """One of several processes that train together."""

    rank: int = 0
    num_ranks: int = 1
    rank_here: int = 0
    """Among those of this machine."""

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes, prints and tracks."""
        return self.rank == 0

    def divides(self, num_images: int) -> bool:
        """Whether each rank has a part of such a batch; one of fewer pairs than ranks is computed whole by all."""
        return self.num_ranks > 1 and (num_images + 1) // 2 >= self.num_ranks

    def part_of(self, num_images: int) -> slice | IndexArray:
        """Places in a batch of the images that are this rank's."""
        return self.places(self.rank, num_images) if self.divides(num_images) else slice(None)

    def places(self, rank: int, num_images: int) -> IndexArray:
        """Places of a rank's images in a batch that is divided: some of its first half, then their mirror images.

        So the partners that mixing takes, from the batch in reverse order, are on the same rank and in reverse order.
        """
        num_pairs = (num_images + 1) // 2
        start, stop = (num_pairs * each // self.num_ranks for each in (rank, rank + 1))
        first = np.arange(start, stop, dtype=np.int64)
        mirrored = num_images - 1 - first[::-1]
        return np.concatenate([first, mirrored[mirrored > first[-1]]])  # the image in the middle is its own partner


ALONE = Ranks()


def ranks_here() -> Ranks:
    """This process among those that have joined."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))


def check_device(device: torch.device) -> None:
    """Raise DeviceError if ranks of this machine would have to share a GPU, which they cannot."""
    num_here, num_gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if device.type == "cuda" and num_here > num_gpus:
        raise DeviceError(
            f"torchrun started {num_here} ranks on a machine with {num_gpus} GPUs, and each needs one of its own; "
            f"use --nproc-per-node={num_gpus}, or device: cpu"
        )


@contextmanager
def joined_ranks() -> Generator[Ranks]:
    """Meet the other processes that torchrun started; alone where it did not start this one.

    Raises:
        TrainingError: another rank has ended or does not answer.
        CompressError: whatever the block raises, with the rank's number before it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or ranks_here() != ALONE:
        yield ranks_here()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    with _named_errors():
        # Tensors of the host go through gloo on a GPU machine too: what ranks agree on is no work for a device.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT, **_meeting()
        )
        wait_for_all()  # a rank that fails at once says why, instead of leaving others that are still connecting
        yield ranks_here()
    # Not after an error: the others may be gone, and the process ends anyway.
    dist.destroy_process_group()


def _meeting() -> dict[str, Any]:
    """Where ranks exchange their addresses: torchrun's store, but nothing in it that ranks left who have died."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=TIMEOUT)
    name = invite(store, num_ranks) if rank == 0 else accept(store, rank)
    return {"store": PrefixStore(name, store), "rank": rank, "world_size": num_ranks}


def invite(store: Store, num_ranks: int) -> str:
    """Give a meeting a new name and tell it to all other ranks; done when they have it.

    torchrun keeps one store over restarts (pytorch issue 135712): a rank that reads the address which another one left
    before it died tries to connect to nobody. Counting restarts does not help, because each machine counts its own.
    So the first rank makes up a name, and answers every call that another one has made up.
    """
    name, answered, deadline = uuid.uuid4().hex, dict[int, bytes](), time.monotonic() + TIMEOUT.total_seconds()
    missing = set(range(1, num_ranks))
    while missing:
        if time.monotonic() > deadline:
            raise TrainingError(f"ranks {sorted(missing)} have not come; see whether their machines reach this one")
        for rank in sorted(missing):
            if store.check([f"compress/{name}/{rank}"]):
                missing.remove(rank)
            elif store.check([f"compress/{rank}"]) and answered.get(rank) != (call := store.get(f"compress/{rank}")):
                answered[rank] = call
                store.set(f"compress/{rank}/{call.decode()}", name)
        time.sleep(POLL_SECONDS)
    return name


def accept(store: Store, rank: int) -> str:
    """The name of the meeting to which the first rank invites."""
    call = uuid.uuid4().hex
    store.set(f"compress/{rank}", call)
    name = store.get(f"compress/{rank}/{call}").decode()  # waits
    store.set(f"compress/{name}/{rank}", "here")
    return name


@contextmanager
def _named_errors() -> Generator[None]:
    name = f"rank {os.environ.get('RANK', '0')}"
    try:
        yield
    except CompressError as error:
        raise type(error)(f"{name}: {error}") from error
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(words in str(error) for words in LOST):
            raise
        raise TrainingError(
            f"{name}: another rank has ended or does not answer; its own message says why. Run the same command "
            f"again, or start torchrun with --max-restarts: training goes on from its last checkpoint ({_first(error)})"
        ) from error


def _first(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def agreed(value: T) -> T:
    """What the first rank has here, on all of them; the others wait for it."""
    if ranks_here().num_ranks == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def wait_for_all() -> None:
    """Return when every rank has come here."""
    if ranks_here().num_ranks > 1:
        dist.all_reduce(torch.zeros(1))  # not barrier(): that one wants a GPU where there is one


def summed(values: torch.Tensor) -> torch.Tensor:
    """The sum of what all ranks have, on each of them; in place."""
    if ranks_here().num_ranks > 1:
        dist.all_reduce(values)
    return values


def gathered(own: torch.Tensor) -> torch.Tensor:
    """Tensors of one shape from all ranks, stacked in their order; no gradient goes through."""
    num_ranks = ranks_here().num_ranks
    # As bytes: not every backend knows every type.
    sent = own.detach().contiguous().view(-1).view(torch.uint8)
    received = sent.new_empty(num_ranks, len(sent))
    dist.all_gather(list(received.unbind()), sent)
    return received.view(own.dtype).view(num_ranks, *own.shape)
