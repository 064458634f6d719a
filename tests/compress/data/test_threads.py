"""Items are worked on in threads, a few at a time, and come back in order."""

from __future__ import annotations

import os
import signal
import time
import warnings

import pytest

from compress.data.threads import NUM_THREADS, map_in_threads


def test_results_come_in_the_order_of_the_items() -> None:
    def slow_for_the_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        return item * item

    assert list(map_in_threads(slow_for_the_first, range(50))) == [item * item for item in range(50)]


def test_items_are_taken_only_a_few_ahead() -> None:
    taken: list[int] = []

    def items():
        for item in range(1000):
            taken.append(item)
            yield item

    results = map_in_threads(lambda item: item, items())
    next(results)
    assert len(taken) <= 2 * NUM_THREADS
    results.close()


def test_an_error_surfaces_at_its_item() -> None:
    def fails_at_three(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    results = map_in_threads(fails_at_three, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_a_forked_child_has_threads_of_its_own() -> None:
    assert list(map_in_threads(abs, [-1])) == [1]
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forking with threads: the point here
        child = os.fork()
    if child == 0:
        signal.alarm(20)  # a child without threads would wait for ever
        os.write(write_end, b"ok" if list(map_in_threads(abs, [-1])) == [1] else b"no")
        os._exit(0)
    os.close(write_end)
    assert os.read(read_end, 2) == b"ok"
    os.close(read_end)
    os.waitpid(child, 0)
