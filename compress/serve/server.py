"""A process that serves: socket, signals, end."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import math
import os
import resource
import signal
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import final

import uvicorn
from starlette.applications import Starlette

from compress.serve.app import create_app
from compress.serve.connections import bounded_protocol
from compress.serve.errors import ServeError
from compress.serve.logs import json_logs
from compress.serve.model import load_served_model
from compress.serve.settings import TOKEN_VARIABLE, ServeSettings

logger = logging.getLogger("compress.serve")

SIGNALS = (signal.SIGTERM, signal.SIGINT)
OTHER_FILES = 64
"""File descriptors that a process needs beside its connections."""
SHORTEST_TOKEN = 16
BACKLOG = 2_048
M_MMAP_THRESHOLD = -3
"""From malloc.h."""
LARGE_BLOCK = 4_000_000
"""Bytes; a picture of a million pixels has as many."""


def serve(settings: ServeSettings) -> None:
    """Verify the deploy folder and serve it until SIGTERM or Ctrl-C; what was begun is finished first.

    Raises:
        ArtifactError: the folder is not the one that was written.
        ServeError: the server cannot start, or a second signal cut off what was begun.
    """
    token = read_token(settings, os.environ.get(TOKEN_VARIABLE))
    model = load_served_model(settings)
    _give_memory_back()
    _allow_files(settings.limits.max_connections + OTHER_FILES)
    with open_socket(settings.host, settings.port) as listener, json_logs():
        server = StudentServer(create_app(model, settings, token=token), settings)
        facts = {
            "url": address(listener),
            "model": model.name,
            "version": model.version,
            "max_batch": model.max_batch,
            "token": token is not None,
        }
        logger.info("serving", extra={"facts": facts})
        server.run(sockets=[listener])
        if server.num_abandoned:
            raise ServeError(f"stopped by a second signal; {server.num_abandoned} requests were not answered")
        logger.info("stopped")


@final
class StudentServer(uvicorn.Server):
    """uvicorn with an end that answers what was begun, tells probes so, and exits with code 0."""

    def __init__(self, app: Starlette, settings: ServeSettings) -> None:
        limits = settings.limits
        super().__init__(
            uvicorn.Config(
                app,
                http=bounded_protocol(limits),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=math.ceil(limits.idle_timeout_s),
                timeout_graceful_shutdown=math.ceil(limits.read_timeout_s + limits.request_timeout_s) + 1,
            )
        )
        self._app = app
        self._drain_delay_s = settings.drain_delay_s
        self._ending: asyncio.Task[None] | None = None
        self._handles_signals = False
        self.num_abandoned = 0
        """Requests that a second signal left without an answer."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """uvicorn would raise the signal again after a clean end, and the process would die of it."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            yield
        finally:
            if self._handles_signals:
                for number, handler in before.items():
                    asyncio.get_running_loop().remove_signal_handler(number)
                    signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Until there is something to finish, signals do what they always do."""
        await super().startup(sockets)
        if threading.current_thread() is threading.main_thread():  # Python handles signals in no other
            self._handles_signals = True
            for number in SIGNALS:
                asyncio.get_running_loop().add_signal_handler(number, self.end)

    def end(self) -> None:
        """Take no new work, finish what was begun, then stop; called again, stop at once."""
        service = self._app.state.service
        if self._ending is not None:
            self.num_abandoned = service.num_begun
            self.should_exit = self.force_exit = True
            for connection in self.server_state.connections:  # from Python 3.12 on, a server waits for them
                connection.transport.abort()
            return
        service.draining = True
        logger.info("draining", extra={"facts": {"requests": service.num_begun}})
        self._ending = asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        await asyncio.sleep(self._drain_delay_s)
        while self._app.state.service.num_begun:
            await asyncio.sleep(0.02)
        self.should_exit = True


def read_token(settings: ServeSettings, variable: str | None) -> str | None:
    """The bearer token from its file or the environment variable's value; None where neither is given.

    Raises:
        ServeError: both are given, the file cannot be read, or the token is too short or holds spaces.
    """
    if settings.token_file is None:
        text, origin = variable, f"the environment variable {TOKEN_VARIABLE}"
    elif variable is not None:
        raise ServeError(f"there are two tokens, in token_file and in {TOKEN_VARIABLE}; set one of them")
    else:
        text, origin = _read_text(settings.token_file).strip(), str(settings.token_file)
    if text is None:
        return None
    if len(text) < SHORTEST_TOKEN or not text.isascii() or not text.isprintable() or " " in text:
        raise ServeError(f"the token in {origin} must be at least {SHORTEST_TOKEN} ASCII characters without spaces")
    return text


def open_socket(host: str, port: int) -> socket.socket:
    """A socket bound to an address.

    Raises:
        ServeError: the address is no address of this machine, or taken.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )[0]
        # With the protocol named, asyncio switches Nagle's algorithm off: otherwise each answer may wait 40 ms.
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ServeError(f"cannot listen on {host}: {error.strerror}; choose an address of this machine") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
    except OSError as error:
        listener.close()
        raise ServeError(f"cannot listen on {host}, port {port}: {error.strerror}; choose another port") from error
    return listener


def address(listener: socket.socket) -> str:
    """URL of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ServeError(f"the token file {path} cannot be read; make it a readable text file") from error


def _give_memory_back() -> None:
    """Have the C library return large blocks to the system when they are freed, as it does until the first is freed.

    Otherwise it keeps what large pictures took: 0.7 GB instead of 0.1 after a few of 25 million pixels.
    """
    try:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
    except AttributeError:  # not glibc; others return memory unasked
        return


def _allow_files(number: int) -> None:
    """Raise the soft limit on open files, as far as the hard one lets us.

    Raises:
        ServeError: the hard limit is too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < number:
        raise ServeError(f"this process may open {hard} files, and max_connections needs {number}; lower it")
    if soft != resource.RLIM_INFINITY and soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
