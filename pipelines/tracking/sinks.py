"""Where a run's events go: to the store, into a file for later, or nowhere."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, final

from pipelines.tracking.delivery import deliver
from pipelines.tracking.events import Event
from pipelines.tracking.spool import Spool
from pipelines.tracking.store import Store, is_refusal, reason, warn

SECONDS_TO_WAIT: Final = 30.0
SHARE_TO_WAIT: Final = 0.05
"""What a store may cost a stage: these seconds, and this share of the stage's own time beyond them."""


class Sink(ABC):
    """Takes a run's events. `send` returns whatever happens."""

    @abstractmethod
    def send(self, event: Event) -> None:
        """Take one event."""


@final
class Nowhere(Sink):
    """Tracking is off."""

    def send(self, event: Event) -> None:
        """Forget it."""


@final
class Waiting(Sink):
    """Into the run's file, for a later `sync`."""

    def __init__(self, spool: Spool, run_id: str, opening: Event) -> None:
        self._spool = spool
        self._run_id = run_id
        self._opening: Event | None = opening
        self._failed = False

    def send(self, event: Event) -> None:
        """Write it down; what cannot be written is lost, and said once."""
        try:
            if self._opening is not None:
                self._spool.append(self._run_id, self._opening)
                self._opening = None
            self._spool.append(self._run_id, event)
        except OSError as problem:
            if not self._failed:
                warn(f"events are lost ({reason(problem)}); DVC's files have every result")
            self._failed = True


@final
class Live(Sink):
    """To the store; into the run's file once it fails or takes too long, so that a stage waits only so much."""

    def __init__(
        self, store: Store, run_id: str, waiting: Waiting, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.store = store
        self.lost = False
        self._run_id = run_id
        self._waiting = waiting
        self._refused = False
        self._clock = clock
        self._opened = clock()
        self._seconds_waited = 0.0

    def send(self, event: Event) -> None:
        """Deliver it, or let it wait."""
        if self.lost:
            self._waiting.send(event)
            return
        started = self._clock()
        try:
            deliver(self.store, self._run_id, event)
        except Exception as problem:  # MLflow passes on whatever its storage drivers raise; the stage must go on
            if is_refusal(problem):
                self._refuse(problem)
                return
            self.lost = True
            warn(f"lost {self.store.uri} ({reason(problem)}); from here on events wait for `compress sync`")
            self._waiting.send(event)
        else:
            self._seconds_waited += self._clock() - started
            self._leave_if_slow()

    def _leave_if_slow(self) -> None:
        allowed = SECONDS_TO_WAIT + SHARE_TO_WAIT * (self._clock() - self._opened)
        if self._seconds_waited > allowed:
            self.lost = True
            warn(
                f"{self.store.uri} is slow, {self._seconds_waited:.0f} s were spent waiting for it; "
                "from here on events wait for `compress sync`"
            )

    def _refuse(self, problem: Exception) -> None:
        if not self._refused:
            warn(f"the store refused an event ({reason(problem)}); DVC's files have every result")
        self._refused = True
