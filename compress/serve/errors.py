"""Why a server cannot run, and why it refuses a request."""

from __future__ import annotations

from collections.abc import Mapping

from compress.errors import CompressError

RETRY_AFTER = {"Retry-After": "1"}


class ServeError(CompressError):
    """The server cannot start, or could not end well."""


class RequestError(Exception):
    """A request that is not answered; the client sees status, code and message."""

    def __init__(self, status: int, code: str, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        """One word for programs."""
        self.message = message
        """One line for people; never holds what the client sent."""
        self.headers = dict(headers or {})


def busy(message: str) -> RequestError:
    """The server has too much to do; the same request succeeds later."""
    return RequestError(503, "busy", message, headers=RETRY_AFTER)
