"""A real server on a free port of the loopback interface, and a client of the standard library."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

from compress.serve.app import create_app
from compress.serve.model import ServedModel
from compress.serve.server import StudentServer, open_socket
from compress.serve.service import Service
from compress.serve.settings import ServeSettings


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> tuple[int, str]:
        """Status and error code."""
        return self.status, self.json["code"]


def ask(
    port: int,
    method: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    *,
    chunked: bool = False,
) -> Answer:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, headers or {}, encode_chunked=chunked)
        response = connection.getresponse()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
    finally:
        connection.close()


def wait_until(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Fail if a condition does not come true; the time is a bound on waiting, not a measurement."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


class RunningServer:
    """The server in a thread of this process, where the type-checking import hooks see it."""

    def __init__(self, model: ServedModel, settings: ServeSettings, *, token: str | None = None) -> None:
        self.app = create_app(model, settings, token=token)
        self._server = StudentServer(self.app, settings)
        self._listener = open_socket("127.0.0.1", 0)
        self.port: int = self._listener.getsockname()[1]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._server.serve(sockets=[self._listener])

    @property
    def service(self) -> Service:
        return self.app.state.service

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def begin_end(self) -> None:
        """What SIGTERM does."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._server.end)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        return ask(self.port, method, path, body, headers)

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def __enter__(self) -> RunningServer:
        self._thread.start()
        wait_until(lambda: self._server.started or not self.is_running)
        assert self.is_running, "the server did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.is_running:
            self.begin_end()
        self._thread.join(timeout=30)
        assert not self.is_running, "the server did not end"
