"""Request bodies, received within limits of memory and time, and never written to disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from compress.serve.errors import RequestError, busy
from compress.serve.settings import Limits

IMAGE_FIELD = "image"
"""Name of the form field with the picture."""
MAX_PARTS = 16
"""Of a form."""


class BufferFullError(Exception):
    """Unfinished bodies hold all the memory they may."""


@final
class BodyBuffer:
    """Counts the bytes that unfinished requests hold; used in the event loop only."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Raise BufferFullError if there is no room; nothing is taken then."""
        if self.num_bytes + num_bytes > self._max_bytes:
            raise BufferFullError
        self.num_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Undo a `take`."""
        self.num_bytes -= num_bytes


@asynccontextmanager
async def received_body(request: Request, limits: Limits, buffer: BodyBuffer) -> AsyncGenerator[bytes]:
    """The whole body, counted in `buffer` until the block ends.

    Raises:
        RequestError: it is too large, too slow, encoded, or too many others are under way.
        ClientDisconnect: the client went away.
    """
    _check_headers(request, limits)
    body = bytearray()
    try:
        try:
            async with asyncio.timeout(limits.read_timeout_s):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > limits.max_body_bytes:
                        raise _too_large(limits)
                    buffer.take(len(chunk))
                    body += chunk
        except TimeoutError as error:
            message = f"the body did not arrive within {limits.read_timeout_s:g} s"
            raise RequestError(408, "too_slow", message, headers={"Connection": "close"}) from error
        except BufferFullError as error:
            raise busy("too many requests are being received; try again later") from error
        yield bytes(body)
    finally:
        buffer.give_back(len(body))


def image_part(body: bytes, content_type: str) -> bytes:
    """The picture in the body of a multipart form.

    Raises:
        RequestError: the form is damaged, or does not have one picture.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise _bad_form("its Content-Type has no boundary")
    form = _Form()
    try:
        form.parse(body, boundary)
    except FormParserError as error:
        raise _bad_form("it is damaged") from error
    if not form.ended:
        raise _bad_form("it is cut off")
    if len(form.images) != 1:
        raise _bad_form(f"it has {len(form.images)} fields '{IMAGE_FIELD}', expected one")
    return bytes(form.images[0])


@final
class _Form:
    """Collects the fields called `image` of a form that a parser walks through; file names are not looked at."""

    def __init__(self) -> None:
        self.images: list[bytearray] = []
        self.ended = False
        self._num_parts = 0
        self._header = bytearray()
        self._value = bytearray()
        self._is_image = False

    def parse(self, body: bytes, boundary: bytes) -> None:
        """Raise FormParserError for a damaged form."""
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_begin": self._begin_header,
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_part_data": self._add_data,
                "on_end": self._end,
            },
        )
        parser.write(body)
        parser.finalize()

    def _begin_part(self) -> None:
        self._num_parts += 1
        self._is_image = False
        if self._num_parts > MAX_PARTS:
            raise _bad_form(f"it has more than {MAX_PARTS} fields")

    def _begin_header(self) -> None:
        self._header, self._value = bytearray(), bytearray()

    def _end_header(self) -> None:
        if bytes(self._header).lower() != b"content-disposition":
            return
        _, options = parse_options_header(bytes(self._value))
        if options.get(b"name") == IMAGE_FIELD.encode():
            self._is_image = True
            self.images.append(bytearray())

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_image:
            self.images[-1] += data[start:end]

    def _end(self) -> None:
        self.ended = True


def _check_headers(request: Request, limits: Limits) -> None:
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RequestError(415, "encoded_body", "compressed bodies are not taken")
    declared = request.headers.get("content-length")
    if declared is not None and int(declared) > limits.max_body_bytes:  # the server has checked that it is a number
        raise _too_large(limits)


def _too_large(limits: Limits) -> RequestError:
    # The connection stays open and the rest of the body is dropped as it comes, until the idle timeout: closing would
    # reset it under a client that is still sending, which then never reads this answer.
    message = f"the body is larger than {limits.max_body_bytes} bytes (max_body_bytes)"
    return RequestError(413, "body_too_large", message)


def _bad_form(problem: str) -> RequestError:
    return RequestError(400, "malformed_form", f"the form cannot be read: {problem}")
