"""What every request passes first and every answer last: the token, the counters, the log line."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Collection
from typing import Any, final

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("compress.serve")

HEADERS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]


@final
class Gate:
    """ASGI middleware. The path is not logged: routes have names, and a query may hold anything."""

    def __init__(self, app: ASGIApp, *, token: str | None, open_paths: Collection[str], log_requests: bool) -> None:
        self._app = app
        self._expected = None if token is None else f"Bearer {token}".encode()
        self._open_paths = frozenset(open_paths)
        self._log_requests = log_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 499  # what is noted when the client leaves before there is an answer

        async def noting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        app = self._app if self._may_enter(scope) else _unauthorized
        try:
            await app(scope, receive, noting_send)
        except Exception:
            status = 500
            raise
        finally:
            self._note(scope, status, time.perf_counter() - start)

    def _may_enter(self, scope: Scope) -> bool:
        if self._expected is None or scope["path"] in self._open_paths:
            return True
        shown = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(shown) == 1 and hmac.compare_digest(shown[0], self._expected)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("endpoint"), "__name__", "none")
        scope["app"].state.service.metrics.count_request(route, status, seconds)
        if self._log_requests:
            facts: dict[str, Any] = {"route": route, "status": status, "ms": round(seconds * 1000, 2)}
            logger.info("request", extra={"facts": facts})


async def _unauthorized(scope: Scope, receive: Receive, send: Send) -> None:
    body = {"error": "this server asks for a bearer token", "code": "unauthorized"}
    response = JSONResponse(body, status_code=401, headers={"WWW-Authenticate": "Bearer"})
    await response(scope, receive, send)
