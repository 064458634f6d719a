"""Everything a pipeline left that must not depend on when it was killed, as one hash for each file."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

from compress.files import SEAL
from pipelines.recover import OUTPUTS

TIMED = re.compile(r"seconds|latency|per_second|speedup|timings|^reason$|^pareto_front$")
"""Names of values that a clock decides; reasons quote latencies, and the Pareto front compares them."""
SHIPPED_WITH_TIMES = ("model_card.md", "sbom.cdx.json")
"""Files of the deploy folder that tell a latency."""
TIMED_FILES = {
    "reports/accuracy_latency.png",
    "reports/accuracy_size.png",  # coloured by the Pareto front
    *(f"deploy/{name}" for name in SHIPPED_WITH_TIMES),
}


def outcome(root: Path) -> dict[str, str]:
    """SHA-256 of each output by name, times left out."""
    files = [path for folder in OUTPUTS for path in sorted((root / folder).rglob("*")) if path.is_file()]
    names = {path.relative_to(root).as_posix(): path for path in files}
    return {name: _digest(name, path) for name, path in names.items() if name not in TIMED_FILES}


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Names of files that are not the same, or there on one side only."""
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def _digest(name: str, path: Path) -> str:
    content = path.read_bytes()
    if name == "deploy/SHA256SUMS":
        lines = content.decode().splitlines()
        content = "\n".join(line for line in lines if not line.endswith(SHIPPED_WITH_TIMES)).encode()
    elif path.suffix == ".json":
        value = json.loads(content)
        value = value if isinstance(value, dict) else {"list": value}
        if name == "deploy/manifest.json":
            for other in (*SHIPPED_WITH_TIMES, "SHA256SUMS"):
                del value["files"][other]
        for of_times in (SEAL, "hashes"):  # of files that hold times; the files themselves are compared
            value.pop(of_times, None)
        content = json.dumps(_untimed(value), sort_keys=True).encode()
    elif path.suffix == ".csv":
        content = json.dumps(_untimed_rows(content.decode())).encode()
    return hashlib.sha256(content).hexdigest()


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _untimed(inner) for key, inner in value.items() if not TIMED.search(key)}
    if isinstance(value, list):
        return [_untimed(inner) for inner in value]
    return value


def _untimed_rows(text: str) -> list[dict[str, str]]:
    return [
        {key: value for key, value in row.items() if not TIMED.search(key)} for row in csv.DictReader(io.StringIO(text))
    ]
