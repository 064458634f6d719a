"""Items made ahead: in order, never many, errors where they belong, no thread left behind."""

import threading
import time
from collections.abc import Iterator

import pytest

from compress.prefetch import prefetched


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "compress-prefetch"]


def test_items_come_in_their_order_and_the_thread_ends() -> None:
    assert list(prefetched(range(100), depth=3)) == list(range(100))
    assert not threads()


def test_at_most_depth_items_wait_beside_the_one_being_made() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(50):
            made.append(number)
            yield number

    line = prefetched(items(), depth=2)
    for taken in line:
        time.sleep(0.002)
        assert len(made) <= taken + 1 + 2 + 1
    assert len(made) == 50


def test_items_are_made_while_the_consumer_is_busy() -> None:
    second_is_made = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        second_is_made.set()
        yield 2

    line = prefetched(items(), depth=1)
    next(line)
    assert second_is_made.wait(timeout=5)
    line.close()


def test_an_error_surfaces_behind_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError("broken image")

    line = prefetched(items(), depth=4)
    assert next(line) == 1
    with pytest.raises(ZeroDivisionError, match="broken image"):
        next(line)
    assert not threads()


def test_the_thread_ends_when_the_consumer_stops() -> None:
    closed: list[bool] = []

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    for _ in prefetched(items(), depth=2):
        break
    assert not threads()
    assert closed == [True]


def test_nothing_is_made_before_the_first_item_is_asked_for() -> None:
    prefetched(iter([1]), depth=1)
    assert not threads()


def test_a_depth_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        next(prefetched([1], depth=0))
