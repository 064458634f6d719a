"""Connections that cannot be held open for nothing.

uvicorn bounds neither the time in which a client sends the head of a request nor the time in which it takes an answer,
and its limit on connections refuses whoever comes next, health probes included.
"""

from __future__ import annotations

import asyncio
from abc import ABC
from typing import ClassVar, cast

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from compress.serve.settings import Limits


def bounded_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol with a bound on connections and on the time that one spends outside of a request."""
    return type("BoundedProtocol", (_BoundedProtocol,), {"limits": limits})


class _BoundedProtocol(H11Protocol, ABC):
    """One connection; uvicorn makes it, so that the limits are the class's."""

    limits: ClassVar[Limits]
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  as uvicorn's
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            transport.abort()
        else:
            self._set_deadline()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._let_answer()

    def on_response_complete(self) -> None:
        self._set_deadline()
        super().on_response_complete()  # may begin the next request, if that has come already
        self._let_answer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._set_deadline()  # it may come between the head and the body of an answer

    def resume_writing(self) -> None:
        super().resume_writing()
        self._let_answer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        super().connection_lost(exc)

    def _let_answer(self) -> None:
        """From the head of a request to its answer, the application's own limits hold, unless the client does not take
        the answer before."""
        cycle = cast(RequestResponseCycle | None, self.cycle)  # None before the first request
        if cycle is not None and not cycle.response_complete and not self.flow.write_paused:
            self._clear_deadline()

    def _set_deadline(self) -> None:
        self._clear_deadline()
        # Not close(): that would wait for a client that does not take its answer.
        self._deadline = self.loop.call_later(self.limits.idle_timeout_s, self.transport.abort)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
