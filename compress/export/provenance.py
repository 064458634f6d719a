"""What an exported file says about how it was made, for whoever meets it alone."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

from pydantic import JsonValue

from compress.export.graph import IR_VERSION, MIN_ONNXRUNTIME

TOOLS = ("torch", "torchvision", "timm", "onnxscript", "onnx", "onnxruntime", "numpy")
UNITS = {
    "accuracy": "share of images, 0 to 1",
    "agreement": "share of images, 0 to 1",
    "expected_calibration_error": "0 to 1",
    "negative_log_likelihood": "nats per image",
    "loss": "nats per image",
    "latency_ms": "milliseconds",
    "size_bytes": "bytes",
}
"""By how a metric's name begins."""


def tool_versions() -> dict[str, JsonValue]:
    """Versions of what made the file, without the names of builds (+cpu, +cu130), which compute the same."""
    return {name: importlib.metadata.version(name).partition("+")[0] for name in TOOLS}


def requirements(opset: int) -> dict[str, JsonValue]:
    """What a runtime must know to load the file."""
    return {"opset": opset, "ir_version": IR_VERSION[opset], "min_onnxruntime": MIN_ONNXRUNTIME}


def metric_units(names: Iterable[str]) -> dict[str, JsonValue]:
    """Units of measured values by name.

    Raises:
        ValueError: nobody said what a name is measured in.
    """
    return {name: _unit(name) for name in names}


def _unit(name: str) -> str:
    unit = next((unit for start, unit in UNITS.items() if name.startswith(start)), None)
    if unit is None:
        raise ValueError(f"no unit is known for the metric {name!r}; its name must begin with {', '.join(UNITS)}")
    return unit
