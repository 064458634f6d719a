"""A function over many items in a few threads: results in order, only a few of them waiting.

Pillow's decoders release the interpreter lock, so threads use all cores on pictures that take a millisecond; on tiny
ones they only wait for each other.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

NUM_THREADS = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Results in the order of the items; at most twice as many under way as there are threads.

    An exception of the function surfaces at its item; what had not begun by then is not begun any more.
    """
    pool = _pool(os.getpid())
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 2 * NUM_THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@cache
def _pool(process_id: int) -> ThreadPoolExecutor:
    # One for each process: a forked child inherits the object but none of its threads.
    return ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="compress-images")
