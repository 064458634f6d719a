"""Processes that train together inside the tests, and what they are asked to do.

They are forked from one server that has imported torch once; it imports what `PRELOADED` names.
"""

import multiprocessing
import os
import pickle
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from compress.ranks import joined_ranks

PRELOADED = ["tests.conftest", "tests.compress.ranks_at_work", "tests.compress.lessons_for_ranks"]
ANSWER_SECONDS = 60


class Workers:
    """Some processes; `together` runs a function on the first of them, joined as ranks."""

    def __init__(self, connections: list[Connection]) -> None:
        self._connections = connections

    def together(self, num_ranks: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What the function returns on each rank; what it raises on one of them is raised here."""
        answers = self.attempts(num_ranks, function, *arguments)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def attempts(self, num_ranks: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What the function returns or raises on each rank; an EOFError where the process has died."""
        with tempfile.TemporaryDirectory() as folder:
            for rank, connection in enumerate(self._connections[:num_ranks]):
                _send(connection, (rank, num_ranks, f"{folder}/store", function, arguments))
            return [self._answer(connection) for connection in self._connections[:num_ranks]]

    def _answer(self, connection: Connection) -> Any:
        assert connection.poll(ANSWER_SECONDS), "a rank does not answer"
        try:
            return _received(connection)
        except EOFError as died:
            return died


@contextmanager
def workers(number: int) -> Generator[Workers]:
    """So many processes, until the end of the block."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    pairs = [context.Pipe() for _ in range(number)]
    processes = [context.Process(target=_serve, args=(there,), daemon=True) for _, there in pairs]
    for process in processes:
        process.start()
    for _, there in pairs:
        there.close()  # or nobody would see that a process has died
    try:
        yield Workers([here for here, _ in pairs])
    finally:
        for process in processes:
            process.kill()
            process.join()


def _serve(connection: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        rank, num_ranks, store, function, arguments = _received(connection)
        try:
            _send(connection, _at_work(rank, num_ranks, store, function, arguments))
        except Exception as error:
            _send(connection, error)


def _send(connection: Connection, value: Any) -> None:
    """As bytes of its own: `Connection.send` would have several processes share the memory of one tensor."""
    connection.send_bytes(pickle.dumps(value))


def _received(connection: Connection) -> Any:
    return pickle.loads(connection.recv_bytes())


def _at_work(rank: int, num_ranks: int, store: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Join by the same way as under torchrun, with a file in the place of its server."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(num_ranks), "LOCAL_RANK": str(rank)}
    start = dist.init_process_group

    def with_file(backend: str, **settings: Any) -> None:
        start(backend, init_method=Path(store).as_uri(), rank=rank, world_size=num_ranks, **settings)

    dist.init_process_group = with_file
    try:
        with joined_ranks() as ranks:
            return function(ranks, *arguments)
    finally:
        dist.init_process_group = start
        if dist.is_initialized():
            dist.destroy_process_group()
