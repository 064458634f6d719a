"""A server in a process of its own, and what it tells about itself."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from benchmarks.serve.kinds import tensor
from compress.serve import ServeSettings
from compress.verify import GOLDEN_FACTS, GOLDEN_IMAGES, GOLDEN_LOGITS

START_S = 60
SERVE = "import sys; from compress.serve import *; serve(ServeSettings.model_validate_json(sys.argv[1]))"
_SAMPLE = re.compile(r"^(\w+(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    process: subprocess.Popen[str]
    port: int
    model: str
    folder: Path

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def metrics(self) -> dict[str, float]:
        """Every number it counts, by name with labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as response:  # noqa: S310  our own server
            return {name: float(value) for name, value in _SAMPLE.findall(response.read().decode())}

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of the answer to one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def answers_golden(self) -> bool:
        """Whether it gives the logits that were shipped, within their tolerance."""
        images, expected = (np.load(self.folder / name) for name in (GOLDEN_IMAGES, GOLDEN_LOGITS))
        tolerance = json.loads((self.folder / GOLDEN_FACTS).read_text())["tolerance"] * float(np.abs(expected).max())
        for image, logits in zip(images, expected, strict=True):
            kind = tensor(self.model, image[None])
            status, body = self.ask("POST", kind.path, kind.body, kind.headers)
            given = np.frombuffer(body[-logits.nbytes :], dtype="<f4")
            if status != 200 or not np.abs(given - logits).max() <= tolerance:
                return False
        return True

    def resident_mb(self, which: str = "VmRSS") -> float:
        """Memory it holds, in millions of bytes; VmHWM is the most it ever held."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith(f"{which}:"))
        return int(kilobytes) * 1024 / 1e6


@contextmanager
def server(settings: ServeSettings) -> Generator[Server]:
    """Start one on a free port; it is told to end, and waited for, when the block ends."""
    command = [sys.executable, "-c", SERVE, settings.model_dump_json()]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        drain = threading.Thread(target=_drain, args=(process.stderr,))
        try:
            yield _started(process, settings, drain)
        finally:
            process.terminate()
            process.wait()
            if drain.ident is not None:
                drain.join()


def _started(process: subprocess.Popen[str], settings: ServeSettings, drain: threading.Thread) -> Server:
    """The server, once it answers."""
    assert process.stderr is not None
    first = process.stderr.readline()
    if not first.startswith('{"time"'):
        raise SystemExit(f"the server does not start: {first}{process.stderr.read()}")
    facts = json.loads(first)
    drain.start()
    running = Server(process, int(facts["url"].rpartition(":")[2]), facts["model"], settings.folder)
    deadline = time.monotonic() + START_S
    while not _is_ready(running):
        if time.monotonic() > deadline:
            raise SystemExit("the server does not answer")
        time.sleep(0.05)
    return running


def _drain(lines: IO[str]) -> None:
    """A full pipe would stop the server."""
    for _ in lines:
        pass


def _is_ready(running: Server) -> bool:
    try:
        return running.ask("GET", "/v2/health/ready")[0] == 200
    except OSError:
        return False
