"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64)
PREFIX = "compress_serve"


@final
class Metrics:
    """One server's numbers, in a registry of its own. Labels take few values, whatever clients send."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, *, model: str, version: str) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        info = Gauge(f"{PREFIX}_model_info", "The model served.", ("model", "version"), registry=self._registry)
        info.labels(model, version).set(1)
        self._requests = Counter(
            f"{PREFIX}_requests", "Requests by route and status.", ("route", "status"), registry=self._registry
        )
        self._request_seconds = Histogram(
            f"{PREFIX}_request_seconds",
            "From the head of a request to its answer.",
            ("route",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._refused = Counter(
            f"{PREFIX}_refused", "Requests not answered, by reason.", ("reason",), registry=self._registry
        )
        self._decode_seconds = self._histogram("decode_seconds", "Decoding and resizing one picture.", SECONDS)
        self._run_seconds = self._histogram("run_seconds", "One run of the model.", SECONDS)
        self._run_images = self._histogram("run_images", "Images in one run of the model.", IMAGES)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", text, buckets=buckets, registry=self._registry)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a number that is asked for when the metrics are read."""
        Gauge(f"{PREFIX}_{name}", text, registry=self._registry).set_function(value)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """One request was answered, or refused."""
        self._requests.labels(route, status).inc()
        self._request_seconds.labels(route).observe(seconds)

    def count_refusal(self, reason: str) -> None:
        """One request was refused; `reason` is the error's code."""
        self._refused.labels(reason).inc()

    def observe_decode(self, seconds: float) -> None:
        """One picture was decoded."""
        self._decode_seconds.observe(seconds)

    def observe_run(self, num_images: int, seconds: float) -> None:
        """The model ran once."""
        self._run_images.observe(num_images)
        self._run_seconds.observe(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus' format."""
        return generate_latest(self._registry)
