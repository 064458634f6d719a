"""What a run says about the code and the machine that made it."""

from __future__ import annotations

import getpass
import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pipelines.tracking.sinks import Live, Sink

CODE_PATHS: Final = ("params.yaml", "dvc.yaml", "compress", "pipelines")
"""What `git.dirty` looks at; over the whole tree it would always be true, since DVC itself edits dvc.lock."""
GIT_SECONDS: Final = 10
SAMPLE_SECONDS: Final = 5


def origin_tags(root: Path, stage: str) -> dict[str, str]:
    """Commit, DVC stage and user of the process at work; what is not known is left out."""
    tags = {"mlflow.source.name": f"python -m pipelines {stage}", "mlflow.source.type": "LOCAL", "stage": stage}
    for tag, variable in (("dvc.stage", "DVC_STAGE"), ("dvc.exp_name", "DVC_EXP_NAME")):
        if value := os.environ.get(variable):
            tags[tag] = value
    with suppress(KeyError, OSError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    # MLflow itself finds no commit when the program is a console script of a virtual environment.
    if (commit := _git(root, "rev-parse", "HEAD")) is not None:
        tags["mlflow.source.git.commit"] = commit
        tags["git.dirty"] = "true" if _git(root, "status", "--porcelain", "--", *CODE_PATHS) else "false"
    return tags


@contextmanager
def system_metrics(sink: Sink, run_id: str | None) -> Generator[None]:
    """Record processor, memory and GPU use of this machine while a run is live, where psutil is installed."""
    if not isinstance(sink, Live) or run_id is None:
        yield
        return
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
    except ImportError:  # no psutil
        yield
        return
    monitor = SystemMetricsMonitor(
        run_id, sampling_interval=SAMPLE_SECONDS, resume_logging=True, tracking_uri=sink.store.uri
    )
    monitor.start()
    try:
        yield
    finally:
        if not sink.lost:  # its thread may hang in a call to a server that is away; it dies with the process
            monitor.finish()


def _git(root: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None  # no git, no repository, or no commit yet
    return result.stdout.strip()
