"""The load test measures the file it names, counts what fails, and what it writes is a record."""

from __future__ import annotations

import argparse
import json
import shutil
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.serve import load_test
from benchmarks.serve.kinds import KINDS, Kind, every_kind
from benchmarks.serve.load_test import measure, statuses, wrk
from compress.fingerprint import file_sha256
from compress.serve import ServeSettings, load_served_model

if shutil.which("wrk") is None:
    pytest.skip("wrk is not installed", allow_module_level=True)

ANYTHING = Kind("anything", "/", b"body", {"X-Asked": "for"})


def options(**changes: object) -> argparse.Namespace:
    values = {"kinds": None, "clients": [4], "requests": 60, "longest": 60, "runtime_seconds": 0.05, "threads": 1}
    return argparse.Namespace(**{**values, "decode_threads": 1, **changes})


def test_every_kind_of_request_is_answered_and_recorded(deployed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_test, "WARM_UP", 10)
    record = measure(deployed, options())
    assert record.model_sha256 == file_sha256(deployed / "model.onnx")
    assert record.tool.startswith("wrk ")
    assert len(record.runs) == len(KINDS) == len({run.request for run in record.runs})
    for run in record.runs:
        assert run.requests >= 60
        assert (run.answered, run.not_answered) == (run.requests, 0)
        assert run.by_server["200"] >= run.requests


def test_a_folder_that_answers_otherwise_is_not_measured(deployed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.serve.running.Server.answers_golden", lambda self: False)
    with pytest.raises(SystemExit, match="does not answer the golden images"):
        measure(deployed, options(kinds=["png"]))


def test_kinds_are_right_requests(deployed: Path) -> None:
    model = load_served_model(ServeSettings(folder=deployed))
    assert sorted(every_kind(model)) == sorted(KINDS)
    assert json.loads(every_kind(model)["json"].body)["inputs"][0]["shape"] == [1, 24, 24, 3]


@pytest.fixture
def failing_server() -> Iterator[tuple[str, list[str | None]]]:
    """Refuses every fifth request, and notes a header of all."""
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            assert self.rfile.read(int(self.headers["Content-Length"])) == ANYTHING.body
            seen.append(self.headers["X-Asked"])
            self.send_response(503 if len(seen) % 5 == 0 else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    socketserver.TCPServer.allow_reuse_address = True
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()
        thread.join()


def test_refusals_are_counted_and_the_run_ends_with_enough_answers(
    failing_server: tuple[str, list[str | None]],
) -> None:
    url, seen = failing_server
    told = wrk(url, ANYTHING, clients=1, requests=50, longest=60)
    assert told["requests"] >= 50
    assert told["answered"] + told["not_answered"] == told["requests"]
    assert told["not_answered"] == told["requests"] // 5
    assert 0 <= told["p50_ms"] <= told["p95_ms"] <= told["p99_ms"]
    assert set(seen) == {"for"}


def test_statuses_are_those_of_one_route() -> None:
    counted = {
        'compress_serve_requests_total{route="classify",status="200"}': 7.0,
        'compress_serve_requests_total{route="classify",status="503"}': 2.0,
        'compress_serve_requests_total{route="infer",status="500"}': 3.0,
        'compress_serve_requests_total{route="classify",status="499"}': 0.0,
    }
    assert statuses(counted, "classify") == {"200": 7, "503": 2}


def test_wrk_says_which_it_is() -> None:
    assert load_test.wrk_version().split()[0] == "wrk"
