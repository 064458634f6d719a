"""What can be set about a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from compress.data.decoding import LARGEST_MAX_PIXELS
from compress.settings import NonNegativeFloat, PositiveFloat, PositiveInt, Settings

TOKEN_VARIABLE = "COMPRESS_SERVE_TOKEN"  # noqa: S105  the variable's name
"""Environment variable with the bearer token; the command line would show it to every user of the machine."""

Port = Annotated[int, Field(ge=0, le=65_535)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]


class Limits(Settings):
    """What a server does not go beyond, whoever asks."""

    max_body_bytes: PositiveInt = 8_000_000
    """Larger request bodies are refused as soon as that many bytes have come."""
    max_json_bytes: PositiveInt = 2_000_000
    """Larger JSON is refused unread: Python answers nobody else while it parses. Send more as raw tensors."""
    max_buffered_bytes: PositiveInt = 128_000_000
    """Bytes of unfinished request bodies that are held at one time, over all connections."""
    max_pixels: Annotated[int, Field(gt=0, le=LARGEST_MAX_PIXELS)] = 25_000_000
    """Larger pictures are refused by their header, and so are those that would be larger after resizing."""
    max_side: PositiveInt = 16_384
    """Longest side of a picture in pixels."""
    max_images: PositiveInt = 64
    """Images in one inference request."""
    max_requests: PositiveInt = 64
    """Requests that are decoded, wait for the model or are answered at one time; more are told to come back."""
    max_connections: PositiveInt = 2_048
    """Connections at one time; more are closed at once."""
    read_timeout_s: PositiveFloat = 10.0
    """Time for a request's body to arrive."""
    request_timeout_s: PositiveFloat = 10.0
    """Time from a complete request to its answer."""
    idle_timeout_s: PositiveFloat = 10.0
    """Time in which a connection must send the head of its next request, and take the answer to the last one."""


class ServeSettings(Settings):
    """How a deployed student is served."""

    folder: Path
    """The deploy folder."""
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address to listen on. The default is reached from this machine only; 0.0.0.0 from everywhere."""
    port: Port = 8000
    """Port to listen on; 0 takes a free one."""
    token_file: Path | None = None
    """File with the bearer token that requests must show. None: the environment variable COMPRESS_SERVE_TOKEN, and if
    that is not set, everybody who reaches the port may ask."""
    manifest_sha256: Sha256 | None = None
    """SHA-256 that manifest.json must have: a folder that somebody rewrote as a whole is then refused too."""
    threads: PositiveInt = 1
    """Threads inside one run of the model."""
    decode_threads: PositiveInt = 2
    """Threads that decode and resize pictures."""
    max_batch: PositiveInt | None = None
    """Images of different requests that the model answers in one run. None: 32, or 1 for a model whose answer to one
    image depends on the others in its batch."""
    max_delay_ms: NonNegativeFloat = 0.0
    """How long a request waits for company when the model is free. On a processor a batch of 32 takes about 32 times
    as long as one image, and waiting gains nothing; requests that come while the model is busy are batched anyway."""
    drain_delay_s: NonNegativeFloat = 0.0
    """After SIGTERM, time in which the server still tells probes that it is not ready, before it closes its port."""
    log_requests: bool = True
    """One line on standard error for every request."""
    limits: Limits = Limits()
    """What the server does not go beyond."""
