"""A tracking store that answers slowly, and a spool whose writer was killed: short waits, and nothing is lost."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.tracking import sinks
from pipelines.tracking.sinks import SECONDS_TO_WAIT, SHARE_TO_WAIT, Live, Waiting
from pipelines.tracking.spool import Spool

OPENING = {"kind": "open", "id": "run"}


class Clock:
    """Stands still but for what is added."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def events(spool: Spool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for run_id in spool.waiting():
        spool.drain(run_id, found.append)
    return found


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def delivered(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> list[dict[str, Any]]:
    """What reached the store; each event takes as many seconds as it says."""
    arrived: list[dict[str, Any]] = []

    def deliver(store: object, run_id: str, event: dict[str, Any]) -> None:
        clock.now += event["seconds"]
        arrived.append(event)

    monkeypatch.setattr(sinks, "deliver", deliver)
    return arrived


def live(root: Path, clock: Clock) -> Live:
    store: Any = SimpleNamespace(uri="http://slow")
    return Live(store, "run", Waiting(Spool(root), "run", OPENING), clock=clock)


def test_slow_store_is_left_once_it_has_cost_enough_and_every_event_arrives_once(
    tmp_path: Path, clock: Clock, delivered: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    sink = live(tmp_path, clock)
    for number in range(20):
        sink.send({"kind": "metrics", "number": number, "seconds": 9.0})
        clock.now += 1.0
    waiting = events(Spool(tmp_path))
    assert waiting[0] == OPENING
    assert [each["number"] for each in [*delivered, *waiting[1:]]] == list(range(20))
    assert len(delivered) == 4  # 36 s are more than 30 s and a twentieth of the time
    assert "http://slow is slow, 36 s were spent waiting for it" in capsys.readouterr().err


def test_long_training_may_wait_a_share_of_its_time(
    tmp_path: Path, clock: Clock, delivered: list[dict[str, Any]]
) -> None:
    sink = live(tmp_path, clock)
    for number in range(200):
        sink.send({"kind": "metrics", "number": number, "seconds": 2.0})
        clock.now += 60.0
    assert SHARE_TO_WAIT > 2.0 / 62.0
    assert len(delivered) == 200
    assert SECONDS_TO_WAIT < 200 * 2.0
    assert not sink.lost


def test_line_that_a_killed_process_began_does_not_take_the_next_event_with_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append("run", {"number": 0})
    file = next((tmp_path / ".work" / "mlflow_spool").glob("*.jsonl"))
    file.write_text(file.read_text() + '{"numb')
    spool.append("run", {"number": 1})
    spool.append("run", {"number": 2})
    assert events(spool) == [{"number": 0}, {"number": 1}, {"number": 2}]
