"""What a run says about the code and the machine that made it."""

from __future__ import annotations

import getpass
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pipelines.origin import commit_of
from pipelines.tracking.sinks import Live, Sink

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
    here = commit_of(root)
    if here["commit"] is not None:
        tags["mlflow.source.git.commit"] = str(here["commit"])
        tags["git.dirty"] = "true" if here["commit_changed"] else "false"
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
