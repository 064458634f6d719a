"""Tests of the server are skipped where its packages are not installed: a conftest imports the hook."""

from __future__ import annotations

import importlib.util

import pytest

MISSING = [
    name
    for name in ("starlette", "uvicorn", "python_multipart", "prometheus_client")
    if importlib.util.find_spec(name) is None
]


def pytest_pycollect_makemodule() -> None:
    """Skip every module here where the server's packages are not installed."""
    if MISSING:
        pytest.skip(f"the server needs {', '.join(MISSING)}", allow_module_level=True)
