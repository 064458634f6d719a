"""A load test that nobody made, as its record says it."""

from __future__ import annotations

from typing import Any

RUN: dict[str, Any] = {
    "request": "PNG, 32 x 32 px",
    "clients": 32,
    "requests": 100_000,
    "answered": 100_000,
    "not_answered": 0,
    "by_server": {"200": 100_020, "499": 12},
    "seconds": 400.0,
    "requests_per_second": 250.0,
    "p50_ms": 120.04,
    "p95_ms": 150.26,
    "p99_ms": 201.0,
    "runtime_images_per_second": 300.0,
    "share_of_runtime": 0.833,
    "processor_ms": 4.1,
    "model_ms": 3.6,
    "decoding_ms": 0.06,
}
RECORD: dict[str, Any] = {
    "model_sha256": "ab" * 32,
    "tool": "wrk 4.1.0",
    "measured_on": "2026-11-21",
    "machine": "AMD EPYC, 2 core(s)",
    "load_average": 0.1,
    "versions": {"Python": "3.11.7", "onnxruntime": "1.31.1"},
    "threads": 1,
    "decode_threads": 2,
    "server_resident_mb": 122.0,
    "runs": [RUN],
}
