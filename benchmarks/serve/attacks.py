"""What nobody should send, and what must come back."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.serve.kinds import encoded
from benchmarks.serve.running import SERVE, Server
from compress.deploy_manifest import write_manifest
from compress.serve import ServeSettings
from compress.serve.inference_protocol import HEADER_LENGTH
from compress.verify import GOLDEN_IMAGES, MODEL

FLOAT_MODEL = "model.float.onnx"
GIGABYTE = 10**9
NUM_SLOW, NUM_CONNECTIONS = 100, 1000
CLOSED = 0
"""In the place of a status: the connection was closed without an answer."""


class Outcome(NamedTuple):
    """What an attack led to."""

    told: str
    """For people."""
    as_it_must: bool


@dataclass(frozen=True)
class Attack:
    """One way of asking too much."""

    name: str
    run: Callable[[Server], Outcome]


def every_attack() -> list[Attack]:
    """In the order of the table."""
    jpeg = encoded(Image.effect_noise((640, 480), 80).convert("RGB"), "JPEG")
    return [
        Attack("text as image", picture(b"This is no picture. " * 100)),
        Attack("truncated JPEG", picture(jpeg[: len(jpeg) // 2])),
        Attack("PNG of 30,000 x 30,000 px", picture(png(30_000, 30_000))),
        Attack("PNG of 3,000,000 x 8 px", picture(png(3_000_000, 8))),
        Attack("PNG of 16,384 x 8 px", picture(png(16_384, 8), allowed=(200, 422))),
        Attack("wrong dtype", lambda server: infer(server, {"datatype": "FP32"})),
        Attack("wrong shape", lambda server: infer(server, {"shape": [1, 3, 7, 7]})),
        Attack("NaN in JSON", lambda server: infer(server, {"data": [float("nan")] * golden_image(server).size})),
        Attack("NaN as raw float32", nan_as_bytes),
        Attack("NaN through a float-entry file", float_entry_file),
        Attack("600,000 empty lists", lambda server: infer(server, {"data": [[]] * 600_000})),
        Attack("1 GB body, announced", announced_gigabyte),
        Attack("1 GB body, sent in chunks", sent_gigabyte),
        Attack(f"{NUM_SLOW} slow bodies", slow_bodies),
        Attack(f"{NUM_SLOW} slow heads", slow_heads),
        Attack(f"{NUM_CONNECTIONS:,} connections, silent", silent_connections),
        Attack(f"{NUM_CONNECTIONS:,} connections, each asking", asking_connections),
    ]


def png(width: int, height: int) -> bytes:
    """A white picture of that size, compressed a thousandfold: nobody holds its pixels in memory to make it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    compressor = zlib.compressobj(9)
    row = b"\0" + b"\xff" * (-(-width // 8))
    rows = [compressor.compress(row) for _ in range(height)]
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    content = b"".join([*rows, compressor.flush()])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def picture(content: bytes, *, allowed: Collection[int] = (422,)) -> Callable[[Server], Outcome]:
    """A file that is no usable picture."""
    return lambda server: judged(*server.ask("POST", "/classify", content), allowed)


def infer(server: Server, changes: dict[str, object]) -> Outcome:
    """A request in JSON that is right but for `changes`."""
    image = golden_image(server)
    described = {"name": "image", "datatype": "UINT8", "shape": image.shape, "data": [0] * image.size, **changes}
    body = json.dumps({"inputs": [described]}).encode()
    return judged(*server.ask("POST", f"/v2/models/{server.model}/infer", body), (400, 413))


def nan_as_bytes(server: Server) -> Outcome:
    """NaN where the model would take it, if it took float32."""
    image = golden_image(server)
    content = np.full(image.shape, np.nan, dtype="<f4").tobytes()
    described = {
        "name": "image",
        "datatype": "FP32",
        "shape": image.shape,
        "parameters": {"binary_data_size": len(content)},
    }
    head = json.dumps({"inputs": [described]}).encode()
    path = f"/v2/models/{server.model}/infer"
    return judged(*server.ask("POST", path, head + content, {HEADER_LENGTH: str(len(head))}), (400,))


def float_entry_file(server: Server) -> Outcome:
    """The form that does take float32 is never served: a folder that holds it as its model does not start."""
    if not (server.folder / FLOAT_MODEL).is_file():
        return Outcome(f"not tried: the folder has no {FLOAT_MODEL}", True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(shutil.copytree(server.folder, Path(scratch) / "deploy"))
        (folder / FLOAT_MODEL).replace(folder / MODEL)
        write_manifest(folder)
        settings = ServeSettings(folder=folder, port=0).model_dump_json()
        done = subprocess.run([sys.executable, "-c", SERVE, settings], capture_output=True, text=True, timeout=60)
    error = done.stderr.strip().splitlines()[-1]
    return Outcome("refused at the start", done.returncode != 0 and "ArtifactError" in error and "uint8" in error)


def announced_gigabyte(server: Server) -> Outcome:
    """A length that is refused before anything is sent."""
    with connect(server) as connection:
        connection.sendall(f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {GIGABYTE}\r\n\r\n".encode())
        return judged(*answer(connection), (413,))


def sent_gigabyte(server: Server) -> Outcome:
    """A length that is nowhere announced; the refusal comes while the client is still sending."""
    with connect(server) as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        block = b"f4240\r\n" + bytes(1_000_000) + b"\r\n"
        sent = 0
        try:
            while sent < GIGABYTE:
                connection.sendall(block)
                sent += 1_000_000
        except OSError:  # the server has had enough
            pass
        status, body = answer(connection)
    outcome = judged(status, body, (413, CLOSED))
    return Outcome(f"{outcome.told} ({sent / 1e6:.0f} MB sent)", outcome.as_it_must)


def slow_bodies(server: Server) -> Outcome:
    """Heads that announce a picture of which one byte comes; others are answered meanwhile."""
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx"
    return slow(server, head, allowed=(408,))


def slow_heads(server: Server) -> Outcome:
    """Heads that never end."""
    return slow(server, b"POST /classify HTTP/1.1\r\nHost: x\r\n", allowed=(CLOSED,))


def slow(server: Server, content: bytes, *, allowed: Collection[int]) -> Outcome:
    """Many connections that send a little and then nothing."""
    connections = [connect(server) for _ in range(NUM_SLOW)]
    for connection in connections:
        connection.sendall(content)
    healthy = server.answers_golden()
    found = Counter(answer(connection)[0] for connection in connections)
    for connection in connections:
        connection.close()
    return Outcome(f"{shown(found)}; others answered meanwhile: {yes(healthy)}", healthy and set(found) <= set(allowed))


def silent_connections(server: Server) -> Outcome:
    """Connections that are opened and say nothing; others are answered meanwhile."""
    connections = [connect(server) for _ in range(NUM_CONNECTIONS)]
    healthy = server.answers_golden()
    found = Counter(answer(connection)[0] for connection in connections)
    for connection in connections:
        connection.close()
    return Outcome(f"{shown(found)}; others answered meanwhile: {yes(healthy)}", healthy and set(found) == {CLOSED})


def asking_connections(server: Server) -> Outcome:
    """Everybody asks at once: each is answered, or told to come back; probes are answered meanwhile."""
    image = encoded(Image.fromarray(golden_image(server)[0]), "PNG")
    found, slowest_probe_s = asyncio.run(_all_ask(server, image))
    told = f"{shown(found)}; slowest probe {slowest_probe_s:.2f} s"
    return Outcome(told, set(found) <= {200, 503} and found.total() == NUM_CONNECTIONS)


async def _all_ask(server: Server, image: bytes) -> tuple[Counter[int], float]:
    head = f"POST /classify HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(image)}\r\n\r\n"
    tasks = [asyncio.create_task(_ask(server, head.encode() + image)) for _ in range(NUM_CONNECTIONS)]
    slowest = 0.0
    while not all(task.done() for task in tasks):
        start = time.monotonic()
        status = await _ask(server, b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        slowest = max(slowest, time.monotonic() - start if status == 200 else float("inf"))
        await asyncio.sleep(0.02)
    return Counter(task.result() for task in tasks), slowest


async def _ask(server: Server, request: bytes) -> int:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request)
        content = await reader.read()
        writer.close()
    except OSError:
        return CLOSED
    return int(content.split(b" ", 2)[1]) if content else CLOSED


def judged(status: int, body: bytes, allowed: Collection[int]) -> Outcome:
    """As it must be where the status is allowed and an error has a line for people and a word for programs."""
    if status in (200, CLOSED):
        return Outcome(shown({status: 1}), status in allowed)
    error = json.loads(body)
    return Outcome(f"{status} `{error['code']}`", status in allowed and bool(error["error"]))


def shown(found: dict[int, int]) -> str:
    """Statuses with their numbers."""
    words = {CLOSED: "closed"}
    return ", ".join(
        (f"{count:,} x " if count > 1 else "") + words.get(status, str(status))
        for status, count in sorted(found.items())
    )


def yes(value: bool) -> str:
    """For people."""
    return "yes" if value else "no"


def golden_image(server: Server) -> np.ndarray:
    """A batch of one."""
    return np.load(server.folder / GOLDEN_IMAGES)[:1]


def connect(server: Server) -> socket.socket:
    """A bare connection."""
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """The next answer; CLOSED where there is none."""
    response = http.client.HTTPResponse(connection)
    try:
        response.begin()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return CLOSED, b""
