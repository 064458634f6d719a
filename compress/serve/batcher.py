"""Requests that wait for the model, answered several in one run.

One thread runs the model. Whatever has come while it was busy goes into the next run, up to `max_batch` images; only
when the model is free and `max_delay_s` is set does a request wait for company.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple, final

import numpy as np

from compress.serve.model import ImageBatch, LogitBatch


class QueueFullError(Exception):
    """More images wait than may wait."""


class BatcherClosedError(Exception):
    """The batcher takes nothing any more."""


class _Waiting(NamedTuple):
    images: ImageBatch
    answer: Future[LogitBatch]
    since: float


@final
class Batcher:
    """Hands images to `run` in batches. What was submitted is answered, even after `close`, unless it is cancelled."""

    def __init__(
        self,
        run: Callable[[ImageBatch], LogitBatch],
        *,
        max_batch: int,
        max_delay_s: float,
        max_waiting: int,
        observe: Callable[[int, float], None],
    ) -> None:
        """`observe` is told the images and seconds of each run; it is called in the batcher's thread."""
        self._run = run
        self._max_batch = max_batch
        self._max_delay_s = max_delay_s
        self._max_waiting = max_waiting
        self._observe = observe
        self._queue: deque[_Waiting] = deque()
        self._num_waiting = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="compress-batcher")
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Images that wait for a run."""
        return self._num_waiting

    def submit(self, images: ImageBatch) -> Future[LogitBatch]:
        """Put one request's images in the queue; they are answered in one run.

        Raises:
            QueueFullError: too many images wait already.
            BatcherClosedError: `close` was called.
        """
        with self._changed:
            if self._closed:
                raise BatcherClosedError
            if self._num_waiting + len(images) > self._max_waiting:
                raise QueueFullError
            answer: Future[LogitBatch] = Future()
            self._queue.append(_Waiting(images, answer, time.monotonic()))
            self._num_waiting += len(images)
            self._changed.notify()
        return answer

    def close(self) -> None:
        """Answer everything that waits, then end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            self._answer(batch)

    def _next_batch(self) -> list[_Waiting]:
        """The next requests to answer together; empty when the batcher is closed and has nothing left to do."""
        with self._changed:
            while True:
                while not self._queue and not self._closed:
                    self._changed.wait()
                self._wait_for_company()
                batch = self._take()
                if batch or (not self._queue and self._closed):
                    return batch

    def _wait_for_company(self) -> None:
        while self._queue and self._num_waiting < self._max_batch and not self._closed:
            remaining = self._queue[0].since + self._max_delay_s - time.monotonic()
            if remaining <= 0:
                return
            self._changed.wait(remaining)

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        num_images = 0
        while self._queue and (not batch or num_images + len(self._queue[0].images) <= self._max_batch):
            waiting = self._queue.popleft()
            self._num_waiting -= len(waiting.images)
            if waiting.answer.set_running_or_notify_cancel():
                batch.append(waiting)
                num_images += len(waiting.images)
        return batch

    def _answer(self, batch: list[_Waiting]) -> None:
        start = time.perf_counter()
        try:
            images = batch[0].images if len(batch) == 1 else np.concatenate([waiting.images for waiting in batch])
            logits = self._run(images)
        except (
            Exception
        ) as error:  # whatever it is, it belongs to those who wait, and the next batch has its own chance
            for waiting in batch:
                waiting.answer.set_exception(error)
            return
        self._observe(len(images), time.perf_counter() - start)
        first = 0
        for waiting in batch:
            last = first + len(waiting.images)
            waiting.answer.set_result(logits[first:last])
            first = last
