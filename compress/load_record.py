"""What a load test found out about a deployed student behind HTTP, as it is kept and as the model card shows it."""

from __future__ import annotations

import math
from datetime import date
from typing import Annotated

from pydantic import Field, model_validator

from compress.settings import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Settings, Sha256

ANSWERED, CUT_OFF = "200", "499"
"""Status of an answer, and what the server notes where the client left before it."""
ROUNDING = 0.01
"""Rates are kept rounded: how far two of them may be apart, as a fraction."""

Line = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\r\n|`]*$")]
"""Text that fits into a cell of a Markdown table."""


class LoadRun(Settings):
    """One kind of request from one number of clients."""

    request: Line
    """What was sent, in words."""
    clients: PositiveInt
    """Connections that each send their next request when the last one is answered."""
    requests: PositiveInt
    """Requests sent."""
    answered: NonNegativeInt
    """Those that came back with status 200."""
    not_answered: NonNegativeInt
    """All others: refused, failed, timed out, cut off."""
    by_server: dict[str, NonNegativeInt]
    """Answers by status as the server counted them meanwhile: a second witness."""
    seconds: PositiveFloat
    requests_per_second: NonNegativeFloat
    """Answered ones."""
    p50_ms: NonNegativeFloat
    p95_ms: NonNegativeFloat
    p99_ms: NonNegativeFloat
    runtime_images_per_second: PositiveFloat
    """ONNX Runtime alone, one image after the other: mean of just before and just after."""
    share_of_runtime: NonNegativeFloat
    """Requests a second as a fraction of that."""
    processor_ms: NonNegativeFloat
    """Processor time of the server for one request."""
    model_ms: NonNegativeFloat
    """Of the model for one image, as the server measured it."""
    decoding_ms: NonNegativeFloat
    """Of decoding and resizing one picture, as the server measured it."""

    @model_validator(mode="after")
    def _adds_up(self) -> LoadRun:
        refused = sum(count for status, count in self.by_server.items() if status not in (ANSWERED, CUT_OFF))
        problems = {
            "answered and not_answered are not all requests": self.answered + self.not_answered != self.requests,
            "the server answered fewer than the clients received": self.by_server.get(ANSWERED, 0) < self.answered,
            "the server counted failures that are missing in not_answered": refused > self.not_answered,
            # The last request of each client is under way when the test ends.
            "the server counted requests cut off that are missing in not_answered": self.by_server.get(CUT_OFF, 0)
            > self.not_answered + self.clients,
            "p50_ms, p95_ms and p99_ms are not in order": not self.p50_ms <= self.p95_ms <= self.p99_ms,
            "requests_per_second is not answered / seconds": not _close(
                self.requests_per_second, self.answered / self.seconds
            ),
            "share_of_runtime is not requests_per_second / runtime_images_per_second": not _close(
                self.share_of_runtime, self.requests_per_second / self.runtime_images_per_second
            ),
        }
        found = next((problem for problem, is_there in problems.items() if is_there), None)
        if found is not None:
            raise ValueError(found)
        return self


class LoadRecord(Settings):
    """One load test of one deploy folder."""

    model_sha256: Sha256
    """Of the model.onnx that was served."""
    tool: Line
    """The load generator with its version."""
    measured_on: date
    machine: Line
    """Processor and cores, for server and clients together."""
    load_average: NonNegativeFloat
    """Of the machine over the minute before."""
    versions: dict[Line, Line]
    """Of Python and the packages that answer."""
    threads: PositiveInt
    """Inside one run of the model, in the server and alone."""
    decode_threads: PositiveInt
    server_resident_mb: PositiveFloat
    """Memory of the server at the end."""
    runs: Annotated[tuple[LoadRun, ...], Field(min_length=1)]


def serving_section(record: LoadRecord) -> str:
    """The record for people, as Markdown."""
    columns = ("request", "clients", "requests", "not answered", "p50 ms", "p95 ms", "p99 ms", "requests/s", "share")
    head = f"| {' | '.join(columns)} |"
    rows = [
        f"| {run.request} | {run.clients} | {run.requests:,} | {run.not_answered:,} | {run.p50_ms:.1f} | "
        f"{run.p95_ms:.1f} | {run.p99_ms:.1f} | {run.requests_per_second:.1f} | {run.share_of_runtime:.0%} |"
        for run in record.runs
    ]
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    notes = (
        f"`compress serve` as one process, measured on {record.measured_on} with {record.tool} on the same machine: "
        f"{record.machine}, load average {record.load_average:.2f} before; {record.threads} thread(s) in the model, "
        f"{record.decode_threads} for decoding; {versions}. The share is of what ONNX Runtime alone does with this "
        "file and as many threads, one image after the other. The server took "
        f"{record.server_resident_mb:.0f} MB of memory."
    )
    return "\n\n".join(["\n".join([head, "|---|" + "---:|" * 8, *rows]), notes])


def _close(given: float, expected: float) -> bool:
    return math.isclose(given, expected, rel_tol=ROUNDING, abs_tol=ROUNDING)
