"""Where runs are kept: a SQLite file in the project, or the server that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from compress.errors import CompressError, TrackingError
from pipelines.redaction import redacted

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment
    from mlflow.entities import Run as StoredRun

PROBE_SECONDS: Final = 3.0
LOCK_SECONDS: Final = 60.0
PAGE: Final = 1000
ARTIFACTS: Final = "mlartifacts"
"""Folder of the embedded store's files."""

STUDENT_TAG: Final = "student"
CURRENT_TAG: Final = "current"
FINGERPRINT_TAG: Final = "fingerprint"
WORKSPACE_TAG: Final = "dvc.workspace"
ORIGIN_TAG: Final = "compress.origin"
"""The id under which a run was first known: another store's id, or one given while the server was away."""

_ENVIRONMENT: Final = {
    # MLflow's defaults wait four minutes for a refused connection and ten for a silent server.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_REFUSALS: Final = frozenset(
    {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE", "BAD_REQUEST"}
)


@final
class TrackingOffError(TrackingError):
    """Nothing is tracked: it is switched off, or MLflow is not installed."""


@final
@dataclass(frozen=True)
class Store:
    """An open store and the experiment that holds this project's runs."""

    client: MlflowClient
    uri: str
    experiment_id: str
    registry_name: str
    """Name of the registered model; the experiment's name without the characters a registry forbids."""

    def run_page(self, run_id: str) -> str | None:
        """Address of a run's page, without a password that MLFLOW_TRACKING_URI carries; None for the embedded store,
        whose pages exist only while its server runs."""
        page = f"{redacted(self.uri).rstrip('/')}/#/experiments/{self.experiment_id}/runs/{run_id}"
        return page if is_server(self.uri) else None

    def get_run(self, run_id: str) -> StoredRun | None:
        """The run with this id, unless it is unknown or deleted."""
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
        except MlflowException as problem:
            if is_refusal(problem):
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def search(self, tags: Mapping[str, str]) -> list[StoredRun]:
        """Active runs that carry all these tags, newest first."""
        terms = " and ".join(f"tags.`{key}` = '{_literal(value)}'" for key, value in tags.items())
        found: list[StoredRun] = []
        token: str | None = None
        while True:
            page = self.client.search_runs([self.experiment_id], terms, max_results=PAGE, page_token=token)
            found.extend(page)
            token = page.token
            if not token:
                return found

    def find_run(self, name: str, *, run_id: str | None, fingerprint: str | None) -> StoredRun | None:
        """A network's run: by its id, by the id it had elsewhere, or by what determines its result."""
        found: StoredRun | None = None
        if run_id is not None:
            found = self.get_run(run_id) or next(iter(self.search({ORIGIN_TAG: run_id})), None)
        if found is None and fingerprint is not None:
            found = next(iter(self.search({STUDENT_TAG: name, FINGERPRINT_TAG: fingerprint})), None)
        return found


def store_root(root: Path) -> Path:
    """The folder that keeps the store: DVC's own root, because a queued experiment's folder is deleted after it."""
    return Path(os.environ.get("DVC_ROOT") or root).resolve()


def workspace(root: Path) -> str:
    """`main`, or the experiment's name while a queued DVC experiment runs in a folder of its own."""
    return "main" if root.resolve() == store_root(root) else os.environ.get("DVC_EXP_NAME") or "queued"


def store_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or the project's own SQLite file."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store_root(root) / 'mlflow.db'}"


def experiment_name() -> str:
    """MLFLOW_EXPERIMENT_NAME, or `compress`."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "compress"


def is_server(uri: str) -> bool:
    """Whether runs go over HTTP."""
    return uri.startswith(("http://", "https://"))


def warn(message: str) -> None:
    """One line for the person at the terminal, without passwords."""
    print(f"tracking: {redacted(message)}", file=sys.stderr, flush=True)


def ensure_store(root: Path) -> None:
    """Create the store and its experiment where they are missing; several processes may do so at once.

    Never fatal: what is wrong is said in one line.
    """
    try:
        connect(root)
    except TrackingOffError as off:
        warn(str(off))
    except Exception as problem:  # a store that is away must not stop the pipeline, whatever its client raises
        warn(f"{store_uri(root)} cannot be used ({reason(problem)}); stages will record to {spool_folder(root)}")


def spool_folder(root: Path) -> Path:
    """Where events wait for a store that is away."""
    return store_root(root) / ".work" / "mlflow_spool"


def connect(root: Path) -> Store:
    """Open the store, creating what is missing.

    Raises:
        TrackingOffError: tracking is switched off or MLflow is not installed.
        Exception: whatever MLflow and its database drivers raise for a store that cannot be used.
    """
    if os.environ.get("COMPRESS_TRACKING", "").lower() == "off":
        raise TrackingOffError("tracking is off: COMPRESS_TRACKING=off")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient
    except ImportError as problem:
        raise TrackingOffError("tracking is off: MLflow is not installed") from problem
    _quieten()
    uri = store_uri(root)
    if is_server(uri):
        _probe(uri)
    with locked(store_root(root) / ".work" / "mlflow.lock"):
        client = MlflowClient(tracking_uri=uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or uri)
        experiment = _experiment(client, root, uri)
    registry_name = experiment.name.strip("/").replace("/", "-").replace(":", "-")
    return Store(client, uri, experiment.experiment_id, registry_name)


@contextmanager
def reached(root: Path) -> Generator[Store]:
    """An open store for something that a person asked for.

    Raises:
        TrackingError: it is off, cannot be used, or fails before the work is done.
    """
    try:
        yield connect(root)
    except (CompressError, LookupError, TypeError, AttributeError, AssertionError):
        raise  # ours to explain, or a bug
    except Exception as problem:  # MLflow passes on whatever its database and storage drivers raise
        advice = "" if is_refusal(problem) else "; start the server, or change or unset MLFLOW_TRACKING_URI"
        address = redacted(store_uri(root))
        raise TrackingError(f"cannot use the tracking store {address}: {reason(problem)}{advice}") from problem


def is_refusal(problem: BaseException) -> bool:
    """Whether the store answered and said no, so that asking again is pointless."""
    from mlflow.exceptions import MlflowException

    if isinstance(problem, FileNotFoundError):
        return True
    return isinstance(problem, MlflowException) and problem.error_code in _REFUSALS


def reason(problem: BaseException) -> str:
    """An exception in one short line, without passwords."""
    lines = redacted(str(problem)).strip().splitlines()
    text = lines[0] if lines else type(problem).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold a lock file; raise TimeoutError rather than wait for a process that hangs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_SECONDS
    with path.open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as problem:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{path} is held by another process for {LOCK_SECONDS:.0f} s") from problem
                time.sleep(0.05)
        yield


def _quieten() -> None:
    """A store that is away is reported once, by us; MLflow would add a traceback, and urllib3 a line, to every call."""
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def _probe(uri: str) -> None:
    """Ask the server for a sign of life, once; any answer will do."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    http_request(
        get_default_host_creds(uri), "/health", "GET", max_retries=0, timeout=PROBE_SECONDS, raise_on_status=False
    )


def _experiment(client: MlflowClient, root: Path, uri: str) -> Experiment:
    from mlflow.exceptions import MlflowException

    name = experiment_name()
    found = client.get_experiment_by_name(name)
    if found is None:
        # A server decides itself where files go; beside a database they would land in the current directory.
        location = None if is_server(uri) else _artifacts(root)
        try:
            return client.get_experiment(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process was first
            if found is None:
                raise
    _require_place(found, root, uri)
    if found.lifecycle_stage != "active":
        client.restore_experiment(found.experiment_id)
    return found


def _require_place(experiment: Experiment, root: Path, uri: str) -> None:
    """MLflow keeps absolute addresses of files: in a copied or moved project they lead to the old place."""
    expected, actual = _artifacts(root), experiment.artifact_location
    if not is_server(uri) and actual != expected and actual.endswith(f"/{ARTIFACTS}"):
        raise TrackingError(
            f"{redacted(uri)} was made when the project was elsewhere, its files are in {actual}; "
            "move the project back, or delete the database and run `compress sync`"
        )


def _artifacts(root: Path) -> str:
    return (store_root(root) / ARTIFACTS).as_uri()


def _literal(value: str) -> str:
    """A value for a search filter; MLflow has no way to escape a quote, and our own values have none."""
    return value.replace("'", "")
