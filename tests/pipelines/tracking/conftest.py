"""Projects with an empty store of their own, and one real tracking server for all tests."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pipelines.tracking.view import ui_command

SERVER_SECONDS = 120


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """No tracking variable of the person who runs the tests, and none left behind by the code under test."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(("MLFLOW_", "DVC_", "COMPRESS_")):
            del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables without a row; making them takes seconds, copying them does not."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def project(tmp_path: Path, empty_database: Path) -> Path:
    """An empty project whose store exists."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "mlflow.db").write_bytes(empty_database.read_bytes())
    return root


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[str]:
    """Address of a real MLflow server, started as `make ui` starts it."""
    root = tmp_path_factory.mktemp("server")
    (root / "mlflow.db").write_bytes(empty_database.read_bytes())
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (root / "log.txt").open("w") as log:
        process = subprocess.Popen(ui_command(root, port=port), stdout=log, stderr=log, cwd=root)
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", process, root / "log.txt")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=SERVER_SECONDS)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SERVER_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"no server at {url}:\n{log.read_text()}")
