"""A server that is told to stop finishes what was begun and takes nothing more."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from compress.serve import ServedModel, ServeSettings
from tests.compress.serve.pictures import every_kind
from tests.compress.serve.running import RunningServer, wait_until
from tests.compress.serve.test_limits import HeldModel, classify_in_background, send_head, status

JPEG = every_kind()["jpeg"]


def test_what_was_begun_is_answered_and_new_work_is_refused_meanwhile(model: ServedModel, deployed: Path) -> None:
    with RunningServer(model, ServeSettings(folder=deployed)) as server, ThreadPoolExecutor(5) as pool:
        held = HeldModel(server)
        answers = classify_in_background(pool, server, 5)
        server.begin_end()
        wait_until(lambda: server.service.draining)
        refused = server.ask("POST", "/classify", JPEG)
        assert refused.code == (503, "draining")
        assert refused.headers["retry-after"] == "1"
        for path in ("/v2/health/ready", "/v2/models/tiny/ready") * 15:  # for as long as the work takes
            answer = server.ask("GET", path)
            assert (answer.status, answer.json["ready"]) == (503, False)
            time.sleep(0.01)
        assert server.ask("GET", "/v2/health/live").status == 200
        assert server.is_running
        held.let_go()
        assert [answer.result().status for answer in answers] == [200] * 5
        wait_until(lambda: not server.is_running)


def test_body_under_way_is_still_received_and_answered(model: ServedModel, deployed: Path) -> None:
    with RunningServer(model, ServeSettings(folder=deployed)) as server, server.connect() as connection:
        send_head(connection, length=len(JPEG))
        connection.sendall(JPEG[:100])
        wait_until(lambda: server.service.buffer.num_bytes == 100)
        server.begin_end()
        wait_until(lambda: server.service.draining)
        connection.sendall(JPEG[100:])
        assert status(connection) == 200
        wait_until(lambda: not server.is_running)


def test_idle_connections_do_not_delay_the_end(model: ServedModel, deployed: Path) -> None:
    with RunningServer(model, ServeSettings(folder=deployed)) as server:
        connections = [server.connect() for _ in range(10)]
        connections[0].sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status(connections[0]) == 200
        connections[1].sendall(b"POST /classify HTTP")
        server.begin_end()
        wait_until(lambda: not server.is_running, seconds=8)  # the idle timeout is 10 s
        for connection in connections:
            connection.close()


def test_probes_have_time_to_see_that_it_is_not_ready(model: ServedModel, deployed: Path) -> None:
    with RunningServer(model, ServeSettings(folder=deployed, drain_delay_s=0.8)) as server:
        server.begin_end()
        wait_until(lambda: server.service.draining)
        assert server.ask("GET", "/v2/health/ready").status == 503
        wait_until(lambda: not server.is_running)


def test_second_signal_ends_at_once_and_counts_what_it_cut_off(model: ServedModel, deployed: Path) -> None:
    with RunningServer(model, ServeSettings(folder=deployed)) as server, ThreadPoolExecutor(2) as pool:
        held = HeldModel(server)
        answers = classify_in_background(pool, server, 2)
        server.begin_end()
        wait_until(lambda: server.service.draining)
        server.begin_end()
        wait_until(lambda: server._server.num_abandoned == 2)
        held.let_go()
        wait_until(lambda: not server.is_running)
        for answer in answers:
            assert answer.exception() is not None or answer.result().status in (200, 500)
