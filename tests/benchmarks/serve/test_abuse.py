"""The abuse script asks a real server, and says so where an answer is not as it must be."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.serve.abuse import attacked
from benchmarks.serve.attacks import Attack, Outcome, every_attack, judged, png
from benchmarks.serve.running import Server, server
from compress.serve import ServeSettings

WAITS = ("slow", "silent", "asking")
"""Those that take as long as the server's time limits, or load the machine."""


@pytest.fixture(scope="module")
def running(deployed: Path) -> Iterator[Server]:
    with server(ServeSettings(folder=deployed, port=0)) as running:
        yield running


def test_attacks_that_need_no_waiting_end_as_they_must(running: Server, capsys: pytest.CaptureFixture[str]) -> None:
    attacks = [
        attack for attack in every_attack() if not any(word in attack.name for word in (*WAITS, "sent", "float-entry"))
    ]
    assert len(attacks) >= 11
    assert attacked(running, attacks)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.endswith("| yes |")]
    assert len(rows) == len(attacks)


def test_answer_other_than_it_must_be_is_a_failure(running: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert not attacked(running, [Attack("a good picture", lambda server: Outcome("200", False))])
    assert capsys.readouterr().out.splitlines()[-3].endswith("| NO |")


def test_server_that_answers_wrongly_afterwards_is_a_failure(
    running: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Server, "answers_golden", lambda self: False)
    assert not attacked(running, [Attack("nothing", lambda server: Outcome("", True))])
    assert "WRONG" in capsys.readouterr().out


def test_memory_that_stays_is_a_failure(
    running: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = iter([100.0, 201.0, 300.0])
    monkeypatch.setattr(Server, "resident_mb", lambda self, which="VmRSS": next(sizes))
    assert not attacked(running, [Attack("nothing", lambda server: Outcome("", True))])


def test_folder_around_a_float_entry_file_does_not_start(running: Server) -> None:
    (attack,) = (attack for attack in every_attack() if "float-entry" in attack.name)
    assert attack.run(running) == ("refused at the start", True)


def test_refusal_without_a_word_for_programs_is_an_error() -> None:
    assert judged(422, b'{"error": "damaged", "code": "unreadable_image"}', (422,)) == ("422 `unreadable_image`", True)
    assert not judged(500, b'{"error": "damaged", "code": "internal"}', (422,)).as_it_must
    with pytest.raises(KeyError):
        judged(422, b'{"error": "damaged"}', (422,))


def test_pictures_of_attacks_are_whole_pictures() -> None:
    """Otherwise they would be refused as damaged, whatever their size."""
    with Image.open(io.BytesIO(png(1000, 7))) as image:
        image.load()
        assert image.size == (1000, 7)
