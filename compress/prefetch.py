"""Items made ahead of their use, in a thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable
from typing import Generic, TypeVar, final

Item = TypeVar("Item")


def prefetched(items: Iterable[Item], *, depth: int) -> Generator[Item]:
    """The items in their order, made by a background thread; at most `depth` of them wait.

    An exception surfaces where its item would have come. The thread begins with the first item that is asked for, and
    ends, once the item that it is at is made, when nobody asks for more.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    line = _Line(items, depth)
    line.thread.start()
    try:
        yield from line.taken()
    finally:
        line.stop()


@final
class _Line(Generic[Item]):
    """What waits between the thread that makes items and the one that takes them."""

    def __init__(self, items: Iterable[Item], depth: int) -> None:
        self.thread = threading.Thread(target=self._make, name="compress-prefetch", daemon=True)
        self._items = items
        self._depth = depth
        self._waiting: deque[Item] = deque()
        self._changed = threading.Condition()
        self._is_over = False
        self._is_stopped = False
        self._error: BaseException | None = None

    def taken(self) -> Generator[Item]:
        """The items, as soon as they are there."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_over)
                if not self._waiting:
                    if self._error is not None:
                        raise self._error
                    return
                item = self._waiting.popleft()
                self._changed.notify_all()
            yield item

    def stop(self) -> None:
        """Let the thread end, and wait for that: what it reads from may be closed afterwards."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        self.thread.join()

    def _make(self) -> None:
        try:
            for item in self._items:
                with self._changed:
                    self._changed.wait_for(lambda: len(self._waiting) < self._depth or self._is_stopped)
                    if self._is_stopped:
                        return
                    self._waiting.append(item)
                    self._changed.notify_all()
        except BaseException as error:  # raised again in the thread that takes the items
            self._error = error
        finally:
            with self._changed:
                self._is_over = True
                self._changed.notify_all()
