"""Whoever sends too much, too slowly or too many at once is refused, and everybody else is served meanwhile."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn

from compress.serve import Limits, ServedModel, ServeSettings
from compress.serve.connections import bounded_protocol
from compress.serve.server import open_socket
from tests.compress.serve.pictures import every_kind
from tests.compress.serve.running import RunningServer, ask, wait_until

JPEG = every_kind()["jpeg"]


@contextmanager
def running(model: ServedModel, folder: Path, **limits: float) -> Iterator[RunningServer]:
    with RunningServer(model, ServeSettings(folder=folder, limits=Limits.model_validate(limits))) as server:
        yield server


class HeldModel:
    """Runs of the model wait until they are let go."""

    def __init__(self, server: RunningServer) -> None:
        self.num_runs = 0
        self._go_on = threading.Event()
        self._batcher = server.service._batcher
        self._run = self._batcher._run
        self._batcher._run = self._held

    def _held(self, images: np.ndarray) -> np.ndarray:
        self.num_runs += 1
        assert self._go_on.wait(20)
        return self._run(images)

    def let_go(self) -> None:
        self._go_on.set()


def classify_in_background(pool: ThreadPoolExecutor, server: RunningServer, number: int) -> list:
    """Requests that are admitted and wait for the held model."""
    answers = [pool.submit(server.ask, "POST", "/classify", JPEG) for _ in range(number)]
    wait_until(lambda: server.service._num_admitted == number)
    return answers


def send_head(connection: socket.socket, *, length: int | None) -> None:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    connection.sendall(f"POST /classify HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode())


def send_each(connection: socket.socket, parts: Iterable[bytes], *, pause_s: float = 0.0) -> None:
    for part in parts:
        connection.sendall(part)
        time.sleep(pause_s)


def received(connection: socket.socket) -> bytes:
    """Everything until the server closes, or resets."""
    content = b""
    try:
        while part := connection.recv(65536):
            content += part
    except ConnectionResetError:
        pass
    return content


def status(connection: socket.socket) -> int:
    """Status of the next answer, which is read to its end."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    response.read()
    return response.status


def test_announced_gigabyte_is_refused_before_it_is_sent(server: RunningServer) -> None:
    with server.connect() as connection:
        send_head(connection, length=10**9)
        assert status(connection) == 413
    assert server.service.buffer.num_bytes == 0


@pytest.mark.parametrize("size", [10**30, -1, "1e3", "5, 6"])
def test_absurd_length_is_refused(server: RunningServer, size: object) -> None:
    with server.connect() as connection:
        connection.sendall(f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
        assert status(connection) in (400, 413)


def test_endless_body_is_refused_as_soon_as_the_limit_is_passed(model: ServedModel, deployed: Path) -> None:
    with running(model, deployed, max_body_bytes=100_000) as server, server.connect() as connection:
        send_head(connection, length=None)
        block = b"2710\r\n" + bytes(10_000) + b"\r\n"
        connection.sendall(block * 10)
        wait_until(lambda: server.service.buffer.num_bytes == 100_000)
        connection.sendall(block)
        assert status(connection) == 413
        assert server.service.buffer.num_bytes == 0, "nothing is kept"


@pytest.mark.parametrize("chunked", [False, True])
def test_client_that_sends_on_still_reads_the_refusal(server: RunningServer, chunked: bool) -> None:
    parts = (bytes(1_000_000) for _ in range(30))
    headers = {} if chunked else {"Content-Length": "30000000"}
    answer = ask(server.port, "POST", "/classify", parts, headers, chunked=chunked)
    assert answer.code == (413, "body_too_large")


def test_refused_client_cannot_send_forever(model: ServedModel, deployed: Path) -> None:
    with running(model, deployed, idle_timeout_s=0.2) as server, server.connect() as connection:
        send_head(connection, length=None)
        block = b"10000\r\n" + bytes(65_536) + b"\r\n"
        many = itertools.repeat(block, 30_000)  # two gigabytes
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_each(connection, many)


def test_slow_body_is_refused_and_others_are_served_meanwhile(model: ServedModel, deployed: Path) -> None:
    with running(model, deployed, read_timeout_s=0.6) as server:
        slow = [server.connect() for _ in range(100)]
        for connection in slow:
            send_head(connection, length=1000)
            connection.sendall(b"x")
        assert server.ask("POST", "/classify", JPEG).status == 200
        for connection in slow:
            content = received(connection)
            assert content.startswith(b"HTTP/1.1 408")
            assert b'"code":"too_slow"' in content
            connection.close()
        wait_until(lambda: server.service.num_begun == 0)
        assert server.service.buffer.num_bytes == 0


def test_slow_head_is_cut_off_and_others_are_served_meanwhile(model: ServedModel, deployed: Path) -> None:
    with running(model, deployed, idle_timeout_s=0.7) as server:
        slow = [server.connect() for _ in range(100)]
        for place, connection in enumerate(slow):
            connection.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\n"[: place // 2])
        assert server.ask("POST", "/classify", JPEG).status == 200
        for connection in slow:
            assert received(connection) == b""
            connection.close()


def test_head_that_comes_byte_by_byte_does_not_win_time(model: ServedModel, deployed: Path) -> None:
    with running(model, deployed, idle_timeout_s=0.3) as server, server.connect() as connection:
        head = b"GET /v2 HTTP/1.1\r\n" + b"a: b\r\n" * 3000
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_each(connection, (bytes([byte]) for byte in head), pause_s=0.01)


def test_idle_connection_is_closed_after_its_last_answer(model: ServedModel, deployed: Path) -> None:
    with running(model, deployed, idle_timeout_s=0.3) as server, server.connect() as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert received(connection).endswith(b'{"live":true}')


def test_answer_gives_a_connection_its_time_anew(server: RunningServer) -> None:
    def deadline() -> float:
        (protocol,) = server._server.server_state.connections
        return 0.0 if protocol._deadline is None else protocol._deadline.when()

    wait_until(lambda: len(server._server.server_state.connections) == 0)
    with server.connect() as connection:
        wait_until(lambda: len(server._server.server_state.connections) == 1)
        first = deadline()
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status(connection) == 200
        wait_until(lambda: deadline() > first)


def test_pipelined_requests_are_answered_in_order(server: RunningServer) -> None:
    with server.connect() as connection:
        live = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
        last = b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        connection.sendall(live * 20 + last)
        content = received(connection)
    assert content.count(b'{"live":true}') == 20
    assert content.endswith(b"]}")


def test_client_that_does_not_take_its_answer_is_cut_off(model: ServedModel, deployed: Path) -> None:
    with running(model, deployed, idle_timeout_s=0.3) as server:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(b"GET /docs HTTP/1.1\r\nHost: x\r\n\r\n" * 2000)
            wait_until(lambda: server._server.server_state.total_requests > 0)
            # On a busy machine the answers before the one that finds no room take a while.
            wait_until(lambda: len(server._server.server_state.connections) == 0, seconds=120.0)
        assert server.ask("GET", "/v2/health/live").status == 200


async def long_answer(scope: Any, receive: Any, send: Any) -> None:
    """An application whose answer comes in parts, so that no room for one of them is met in the middle."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(200):
        await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def test_client_that_takes_half_of_an_answer_is_cut_off() -> None:
    protocol = bounded_protocol(Limits(idle_timeout_s=0.3))
    server = uvicorn.Server(uvicorn.Config(long_answer, http=protocol, lifespan="off", log_config=None))

    async def attack() -> None:
        with open_socket("127.0.0.1", 0) as listener:
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started:
                await asyncio.sleep(0.01)
            _, writer = await asyncio.open_connection(*listener.getsockname(), limit=1024)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asyncio.timeout(60.0):
                for is_there in (True, False):
                    while bool(server.server_state.connections) != is_there:
                        await asyncio.sleep(0.01)
            server.should_exit = True
            await serving
            writer.transport.abort()

    asyncio.run(attack())


def test_client_that_leaves_in_the_middle_harms_nobody(model: ServedModel, deployed: Path) -> None:
    with running(model, deployed) as server:
        for _ in range(20):
            with server.connect() as connection:
                send_head(connection, length=1000)
                connection.sendall(b"x" * 500)
        wait_until(lambda: server.service.num_begun == 0)
        assert server.service.buffer.num_bytes == 0
        assert server.ask("POST", "/classify", JPEG).status == 200


def test_bodies_under_way_share_a_bounded_memory(model: ServedModel, deployed: Path) -> None:
    with running(model, deployed, max_buffered_bytes=50_000) as server:
        large = [server.connect() for _ in range(4)]
        for connection in large[:2]:
            send_head(connection, length=30_000)
            connection.sendall(bytes(20_000))
        wait_until(lambda: server.service.buffer.num_bytes == 40_000)
        assert server.ask("POST", "/classify", JPEG).status == 200, "a small one has room"
        answer = server.ask("POST", "/classify", bytes(20_000))
        assert answer.code == (503, "busy")
        assert answer.headers["retry-after"] == "1"
        for connection in large:
            connection.close()
        wait_until(lambda: server.service.buffer.num_bytes == 0)


def test_requests_beyond_the_limit_are_told_to_come_back(model: ServedModel, deployed: Path) -> None:
    with running(model, deployed, max_requests=3) as server, ThreadPoolExecutor(3) as pool:
        held = HeldModel(server)
        answers = classify_in_background(pool, server, 3)
        refused = server.ask("POST", "/classify", JPEG)
        assert refused.code == (503, "busy")
        assert refused.headers["retry-after"] == "1"
        assert server.ask("GET", "/v2/health/ready").status == 200, "probes are answered whatever happens"
        held.let_go()
        assert [answer.result().status for answer in answers] == [200, 200, 200]
        assert server.ask("POST", "/classify", JPEG).status == 200


def test_request_that_takes_too_long_is_given_up_and_not_run(model: ServedModel, deployed: Path) -> None:
    with running(model, deployed, request_timeout_s=0.8) as server, ThreadPoolExecutor(3) as pool:
        held = HeldModel(server)
        answers = [pool.submit(server.ask, "POST", "/classify", JPEG) for _ in range(3)]
        assert {answer.result().code for answer in answers} == {(503, "timeout")}
        assert server.service._num_admitted == 0
        held.let_go()
        assert server.ask("POST", "/classify", JPEG).status == 200
        assert held.num_runs == 2, "the one that had begun, and the last"


def test_requests_that_wait_are_answered_in_one_run(model: ServedModel, deployed: Path) -> None:
    with running(model, deployed) as server, ThreadPoolExecutor(9) as pool:
        held = HeldModel(server)
        first = classify_in_background(pool, server, 1)
        wait_until(lambda: held.num_runs == 1)
        others = [pool.submit(server.ask, "POST", "/classify", picture) for picture in list(every_kind().values())[:8]]
        wait_until(lambda: server.service._batcher.num_waiting == 8)
        held.let_go()
        assert [answer.result().status for answer in (*first, *others)] == [200] * 9
        assert held.num_runs == 2


def test_request_with_too_many_images_is_refused(model: ServedModel, deployed: Path) -> None:
    with running(model, deployed, max_images=1) as server:
        body = b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[2,24,24,3],"data":[]}]}'
        answer = server.ask("POST", "/v2/models/tiny/infer", body)
        assert answer.code == (400, "wrong_shape")
        assert "a request holds 1 to 1 images" in answer.json["error"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1," * 1_000_001, r"larger than 2000000 bytes \(max_json_bytes\); send raw tensors"),
        (b"[]," * 200_001, "more than 200000 lists"),
        (b"{}," * 200_001, "more than 200000 lists"),
    ],
)
def test_json_that_would_keep_everybody_waiting_is_refused_unparsed(
    server: RunningServer, content: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.serve.service.parse_request", None)  # calling it would fail
    answer = server.ask("POST", "/v2/models/tiny/infer", b'{"inputs":[' + content + b"1]}")
    assert answer.code == (413, "body_too_large")
    assert re.search(message, answer.json["error"])


def test_raw_tensors_may_be_larger_than_json(server: RunningServer) -> None:
    body = b"{}" + bytes(3_000_000)
    answer = server.ask("POST", "/v2/models/tiny/infer", body, {"Inference-Header-Content-Length": "2"})
    assert answer.code == (400, "malformed_request"), "looked at, and found to have no inputs"


def test_connections_beyond_the_limit_are_closed_and_come_back_later(model: ServedModel, deployed: Path) -> None:
    with running(model, deployed, max_connections=5) as server:
        connections = [server.connect() for _ in range(5)]
        wait_until(lambda: len(server._server.server_state.connections) == 5)
        with server.connect() as sixth, suppress(ConnectionResetError, BrokenPipeError):
            sixth.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert received(sixth) == b""
        for connection in connections:
            connection.close()
        wait_until(lambda: len(server._server.server_state.connections) == 0)
        assert server.ask("GET", "/v2/health/live").status == 200


def test_damaged_http_is_refused(server: RunningServer) -> None:
    for content in (
        b"\x16\x03\x01\x02\x00" * 100,
        b"GET\r\n\r\n",
        b"a" * 100_000,
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 20_000,
    ):
        with server.connect() as connection:
            try:
                connection.sendall(content)
            except (ConnectionResetError, BrokenPipeError):
                continue
            answer = received(connection)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    assert server.ask("GET", "/v2/health/live").status == 200
