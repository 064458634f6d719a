"""What can be recorded about a run, as JSON values, so that it can be sent now or wait in a file.

Delivering an event twice changes nothing: metrics carry their time, and MLflow keeps equal points once.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from compress.fingerprint import file_sha256

if TYPE_CHECKING:
    from compress.types import ImageArray

Event = dict[str, Any]
Status = Literal["FINISHED", "FAILED", "KILLED"]

DIGITS: Final = 5
"""Significant digits of logged metrics; the table of runs has room for no more, and DVC's files have them all."""


def params_event(settings: Mapping[str, Any]) -> Event:
    """Nested settings as dotted names.

    A method's own hyper-parameters stand under `tuning`: the views preselect parameters by alphabet, and
    `method.temperature` would push out `student`.
    """
    nested = dict(settings)
    method = nested.get("method")
    if isinstance(method, Mapping):
        nested["tuning"] = {key: value for key, value in method.items() if key != "name"}
        nested["method"] = method.get("name")
    return {"kind": "params", "params": dict(_flatten(nested))}


def metrics_event(metrics: Mapping[str, float], *, step: int = 0, final: bool = False) -> Event:
    """One batch of metrics at one step; `final` ones describe the exported model and are shown with it too."""
    return points_event([(name, value, step) for name, value in metrics.items()], final=final)


def points_event(points: Iterable[tuple[str, float, int]], *, final: bool = False) -> Event:
    """One batch of metrics, each with its own step."""
    rows = [[name, rounded(value), step] for name, value, step in points]
    return {"kind": "metrics", "points": rows, "final": final, "time": now()}


def tags_event(tags: Mapping[str, str]) -> Event:
    """Tags of the run."""
    return {"kind": "tags", "tags": dict(tags)}


def file_event(path: Path, folder: str) -> Event:
    """A file to keep beside the run."""
    return {"kind": "file", "path": str(path.resolve()), "folder": folder}


def dataset_event(name: str, *, digest: str, num_rows: int, context: str) -> Event:
    """The data that a run used."""
    return {"kind": "dataset", "name": name, "digest": digest, "num_rows": num_rows, "context": context}


def model_event(
    path: Path, *, name: str, form: str, step: int, metrics: Mapping[str, float], example: ImageArray | None
) -> Event:
    """An ONNX file to log as a model, known by its bytes; the first of the example images is kept with it."""
    return {
        "kind": "model",
        "path": str(path.resolve()),
        "sha256": file_sha256(path),
        "name": name,
        "form": form,
        "step": step,
        "metrics": {key: rounded(value) for key, value in metrics.items()},
        "example": None if example is None else example[:1].tolist(),
        "time": now(),
    }


def end_event(status: Status) -> Event:
    """The run's end."""
    return {"kind": "end", "status": status, "time": now()}


def rounded(value: float) -> float:
    """The value as it is logged."""
    return float(f"{float(value):.{DIGITS}g}")


def now() -> int:
    """Milliseconds since 1970, MLflow's time."""
    return int(time.time() * 1000)


def trained_fingerprint(training: Mapping[str, Any]) -> str:
    """Hash over what determined the results that a training.json describes, all seeds together."""
    fingerprints = [str(seed["fingerprint"]) for seed in training["seeds"]]
    return fingerprints[0] if len(fingerprints) == 1 else hashlib.sha256("".join(fingerprints).encode()).hexdigest()


def _flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)
