"""What happens between a request's body and its answer, whatever protocol it came by."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import ParamSpec, TypeVar, final

import numpy as np

from compress.data.decoding import readable_formats
from compress.serve.batcher import Batcher, BatcherClosedError, QueueFullError
from compress.serve.bodies import BodyBuffer
from compress.serve.errors import RETRY_AFTER, RequestError, busy
from compress.serve.images import ImageReader
from compress.serve.inference_protocol import Inference, parse_request
from compress.serve.metrics import Metrics
from compress.serve.model import ImageBatch, LogitBatch, ServedModel
from compress.serve.settings import ServeSettings

LARGE_JSON = 1_000_000
"""Bytes. Larger JSON is parsed one at a time."""
MOST_LISTS = 200_000
"""Lists and objects in one request. Two million bytes of nested pixels have at most 150,000; as many bytes of empty
lists have 700,000 and keep everybody else waiting for 0.4 s."""

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


@final
class Service:
    """The model with its threads, queue and counters. Made and used in the event loop."""

    def __init__(self, model: ServedModel, settings: ServeSettings) -> None:
        self.model = model
        self.limits = settings.limits
        self.metrics = Metrics(model=model.name, version=model.version)
        self.buffer = BodyBuffer(settings.limits.max_buffered_bytes)
        self.draining = False
        """No new work is taken; what was begun is finished."""
        self.num_begun = 0
        """Requests for answers that were begun and are not finished, those included whose body is still coming."""
        self._num_admitted = 0
        self._read_image = ImageReader(model.preprocessing, settings.limits)
        self._pool = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="compress-decoder")
        self._batcher = Batcher(
            model,
            max_batch=model.max_batch,
            max_delay_s=settings.max_delay_ms / 1000,
            max_waiting=settings.limits.max_requests + settings.limits.max_images,
            observe=self.metrics.observe_run,
        )
        self.metrics.watch("waiting_images", "Images that wait for the model.", lambda: self._batcher.num_waiting)
        self.metrics.watch("requests_in_progress", "Requests begun and not finished.", lambda: self.num_begun)
        self.metrics.watch("buffered_bytes", "Bytes of unfinished request bodies.", lambda: self.buffer.num_bytes)

    def warm_up(self) -> None:
        """Do once what takes longer the first time."""
        readable_formats()
        self.model(np.zeros((1, *self.model.image_shape), dtype=np.uint8))

    def close(self) -> None:
        """Finish what is computed or waits for the model, and end the threads."""
        self._pool.shutdown(cancel_futures=True)
        self._batcher.close()

    @contextmanager
    def begun(self) -> Generator[None]:
        """Around one request for answers, from its head to its end.

        Raises:
            RequestError: the server is shutting down.
        """
        if self.draining:
            raise RequestError(503, "draining", "the server is shutting down", headers=RETRY_AFTER)
        self.num_begun += 1
        try:
            yield
        finally:
            self.num_begun -= 1

    @contextmanager
    def admitted(self) -> Generator[None]:
        """Around the work on one request whose body has come.

        Raises:
            RequestError: as many as may are worked on already.
        """
        if self._num_admitted >= self.limits.max_requests:
            raise busy("too many requests are waiting; try again later")
        self._num_admitted += 1
        try:
            yield
        finally:
            self._num_admitted -= 1

    async def in_thread(
        self, function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Result:
        """A call that would keep other requests waiting, in one of a few threads."""
        return await asyncio.wrap_future(self._pool.submit(function, *args, **kwargs))

    def read_image(self, content: bytes) -> ImageBatch:
        """A picture as a batch of one. Raises RequestError."""
        start = time.perf_counter()
        pixels = self._read_image(content)
        self.metrics.observe_decode(time.perf_counter() - start)
        return pixels[None]

    def read_tensors(self, body: bytes, header_length: int | None) -> Inference:
        """A request of the Open Inference Protocol. Raises RequestError."""
        json_length = len(body) if header_length is None else min(header_length, len(body))
        if json_length > self.limits.max_json_bytes:
            raise RequestError(
                413,
                "body_too_large",
                f"its JSON is larger than {self.limits.max_json_bytes} bytes (max_json_bytes); "
                "send raw tensors behind it",
            )
        if body.count(b"[", 0, json_length) + body.count(b"{", 0, json_length) > MOST_LISTS:
            raise RequestError(413, "body_too_large", f"its JSON has more than {MOST_LISTS} lists; send raw tensors")
        with self._read_image.large if json_length > LARGE_JSON else nullcontext():
            return parse_request(body, header_length=header_length, model=self.model, max_images=self.limits.max_images)

    async def answer(self, images: ImageBatch) -> LogitBatch:
        """The model's logits for the images of one request.

        Raises:
            RequestError: too many images wait, or the model computes nonsense.
        """
        try:
            logits = await asyncio.wrap_future(self._batcher.submit(images))
        except (QueueFullError, BatcherClosedError) as error:
            raise busy("too many images are waiting; try again later") from error
        if not np.isfinite(logits).all():
            raise RequestError(500, "no_finite_answer", "the model's answer to this image holds NaN or infinity")
        return logits
