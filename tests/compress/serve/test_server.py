"""The server as a process: what it needs, how it starts, what it prints, how it ends."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from compress.serve.errors import ServeError
from compress.serve.server import SHORTEST_TOKEN, open_socket, read_token
from compress.serve.settings import TOKEN_VARIABLE, ServeSettings
from tests.compress.serve.pictures import encoded, every_kind, scene
from tests.compress.serve.running import ask, wait_until

ROOT = Path(__file__).parents[3]
JPEG = every_kind()["jpeg"]
TOKEN = "a-token-of-enough-characters"

# Everything that the slim image does not have; an import of it fails as it would there.
PROGRAM = """
    import sys
    for name in "torch torchvision timm onnx onnxscript safetensors sklearn pandas fastapi typer yaml mlflow".split():
        sys.modules[name] = None
    from compress.errors import CompressError
    from compress.serve import ServeSettings, serve
    try:
        serve(ServeSettings.model_validate_json(sys.argv[1]))
    except CompressError as error:
        print(f"compress: {error}", file=sys.stderr)
        sys.exit(1)
"""


class Process:
    """A server in a process of its own."""

    def __init__(self, settings: dict[str, Any], environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROGRAM), json.dumps({"port": 0, **settings}, default=str)],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            self.lines.extend(iter(stream.readline, ""))

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    def wait(self) -> int:
        code = self.process.wait(timeout=30)
        self._reader.join(timeout=30)
        return code

    def wait_for_port(self) -> int:
        wait_until(lambda: len(self.lines) > 0 or self.process.poll() is not None, seconds=30)
        assert self.process.poll() is None, self.lines
        port = int(self.events[0]["url"].rsplit(":", 1)[1])
        wait_until(lambda: answers(port))
        return port


def answers(port: int) -> bool:
    try:
        return ask(port, "GET", "/v2/health/live").status == 200
    except OSError:
        return False


@contextmanager
def serving(
    folder: Path, *, environment: dict[str, str] | None = None, **settings: Any
) -> Iterator[tuple[Process, int]]:
    process = Process({"folder": folder, **settings}, environment)
    try:
        yield process, process.wait_for_port()
    finally:
        process.process.kill()
        process.wait()


def metric(port: int, name: str) -> float:
    """A number that the server tells, summed over its labels."""
    lines = ask(port, "GET", "/metrics").body.decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith((name, f"compress_serve_{name}")))


def refused_start(folder: Path, **settings: Any) -> str:
    """The one line of a server that does not start."""
    process = Process({"folder": folder, **settings})
    assert process.wait() == 1
    (line,) = process.lines
    return line.strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_without_torch_and_ends_with_code_0(deployed: Path, number: signal.Signals) -> None:
    with serving(deployed) as (process, port):
        assert ask(port, "POST", "/classify", JPEG).status == 200
        process.process.send_signal(number)
        assert process.wait() == 0
        assert [event["event"] for event in process.events] == ["serving", *["request"] * 2, "draining", "stopped"]


def test_requests_under_way_at_sigterm_are_answered(deployed: Path) -> None:
    picture = encoded(scene(800, 800), "PNG")
    with serving(deployed) as (process, port), ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, port, "POST", "/classify", picture) for _ in range(8)]
        wait_until(lambda: metric(port, "requests_in_progress") + metric(port, 'requests_total{route="classify"') >= 8)
        process.process.send_signal(signal.SIGTERM)
        assert [answer.result().status for answer in asked] == [200] * 8
        assert process.wait() == 0


def test_second_signal_ends_it_at_once_with_code_1(deployed: Path) -> None:
    with (
        serving(deployed, log_requests=False) as (process, port),
        socket.create_connection(("127.0.0.1", port)) as slow,
    ):
        slow.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx")
        wait_until(lambda: metric(port, "buffered_bytes") == 1)
        process.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in "".join(process.lines))
        process.process.send_signal(signal.SIGTERM)
        assert process.wait() == 1
        assert process.lines[-1] == "compress: stopped by a second signal; 1 requests were not answered\n"


def test_one_changed_byte_is_refused_at_the_start(deployed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "deploy"
    shutil.copytree(deployed, folder)
    path = folder / "model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert refused_start(folder).startswith(f"compress: {path} was changed: its SHA-256 is not the one in the manifest")


def test_manifest_of_somebody_else_is_refused_at_the_start(deployed: Path) -> None:
    assert "is not the one with SHA-256" in refused_start(deployed, manifest_sha256="0" * 64)


def test_taken_port_is_refused_in_one_line(deployed: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = refused_start(deployed, port=port)
    assert line == f"compress: cannot listen on 127.0.0.1, port {port}: Address already in use; choose another port"


def test_logs_hold_no_token_query_address_or_picture(deployed: Path) -> None:
    with serving(deployed, environment={TOKEN_VARIABLE: TOKEN}) as (process, port):
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "multipart/form-data; boundary=secret-boundary"}
        ask(port, "POST", "/classify?top_k=2&key=secret-key", b"secret-body" * 100, headers)
        ask(port, "POST", "/secret-path", JPEG, {"Authorization": "Bearer secret-guess"})
        ask(port, "GET", "/v2/models/secret-model", None, {"Authorization": f"Bearer {TOKEN}"})
        process.process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
        text = "".join(process.lines)
    assert "secret" not in text
    assert TOKEN not in text
    requests = [(event["route"], event["status"]) for event in process.events if event["event"] == "request"]
    assert requests == [("live", 200), ("classify", 400), ("none", 401), ("model_metadata", 404)]


def test_token_of_the_environment_is_asked_for(deployed: Path) -> None:
    with serving(deployed, environment={TOKEN_VARIABLE: TOKEN}, log_requests=False) as (process, port):
        assert ask(port, "POST", "/classify", JPEG).status == 401
        assert ask(port, "POST", "/classify", JPEG, {"Authorization": f"Bearer {TOKEN}"}).status == 200
        assert [event["event"] for event in process.events] == ["serving"]


def test_thousand_connections_leave_it_healthy_and_its_memory_flat(deployed: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip("a process may not open 1,200 files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    request = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(JPEG) + JPEG

    def wave(port: int) -> Counter[bytes]:
        """A thousand connections at once, each with a request; all answers."""
        connections = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(1000)]
        for connection in connections:
            connection.sendall(request)
        answered = Counter(connection.recv(65536).split(b" ")[1] for connection in connections)
        for connection in connections:
            connection.close()
        return answered

    with serving(deployed, log_requests=False) as (_, port):
        wave(port)  # the first one pays for buffers that are kept
        before = metric(port, "process_resident_memory_bytes")
        answered = wave(port)
        assert set(answered) <= {b"200", b"503"}
        assert answered[b"200"] >= 64, "as many as may be worked on are answered"
        assert metric(port, "process_resident_memory_bytes") - before < 30e6, "a thousand requests leave nothing behind"
        assert ask(port, "POST", "/classify", JPEG).status == 200


def test_memory_of_large_pictures_is_given_back(deployed: Path) -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("it is glibc that would keep it")
    picture = encoded(Image.new("RGBA", (3000, 3000), (1, 2, 3, 4)), "WEBP", lossless=True)
    with serving(deployed, log_requests=False) as (_, port), ThreadPoolExecutor(4) as pool:
        ask(port, "POST", "/classify", JPEG)
        before = metric(port, "process_resident_memory_bytes")
        asked = [pool.submit(ask, port, "POST", "/classify", picture) for _ in range(4)]
        assert [answer.result().status for answer in asked] == [200] * 4
        # Decoded, one of them takes 240 MB.
        wait_until(lambda: metric(port, "process_resident_memory_bytes") - before < 40e6)


def token_settings(deployed: Path, path: Path | None = None) -> ServeSettings:
    return ServeSettings(folder=deployed, token_file=path)


def test_token_file_is_read_without_its_line_end(deployed: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(token_settings(deployed, tmp_path / "token"), None) == TOKEN


def test_without_any_token_there_is_none(deployed: Path) -> None:
    assert read_token(token_settings(deployed), None) is None


@pytest.mark.parametrize(
    "token", ["", "short", "x" * (SHORTEST_TOKEN - 1), "with spaces in the middle", "ünicodeünicode12", "a\tb" * 9]
)
def test_unusable_token_is_refused_without_being_told(deployed: Path, token: str) -> None:
    with pytest.raises(ServeError, match=rf"token in the environment variable {TOKEN_VARIABLE} must be") as caught:
        read_token(token_settings(deployed), token)
    assert not token or token not in str(caught.value)


def test_missing_token_file_is_refused(deployed: Path, tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="cannot be read"):
        read_token(token_settings(deployed, tmp_path / "none"), None)


def test_two_tokens_are_refused(deployed: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    with pytest.raises(ServeError, match="two tokens"):
        read_token(token_settings(deployed, tmp_path / "token"), TOKEN)


def test_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ServeError, match=r"cannot listen on 192\.0\.2\.1"):
        open_socket("192.0.2.1", 0)
    with pytest.raises(ServeError, match=r"cannot listen on no\.such\.host\.invalid"):
        open_socket("no.such.host.invalid", 0)


def test_only_this_machine_is_served_by_default(deployed: Path) -> None:
    with open_socket(token_settings(deployed).host, 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_answers_do_not_wait_for_more_data(deployed: Path) -> None:
    with open_socket("127.0.0.1", 0) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            assert accepted.proto == socket.IPPROTO_TCP, "asyncio switches Nagle's algorithm off for these only"
            accepted.close()
