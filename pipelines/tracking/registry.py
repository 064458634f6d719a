"""The registered model and its champion, and which runs are current."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from compress.errors import TrackingError
from compress.files import read_json
from compress.select import FLOAT32
from pipelines.absence import is_absent
from pipelines.exported_bytes import require_same_bytes
from pipelines.layout import TEACHER, Layout
from pipelines.tracking.events import end_event, model_event, trained_fingerprint
from pipelines.tracking.model import FORM_TAG, SHA256_TAG, ModelOfRun, log_model, models_of, stored_sha256
from pipelines.tracking.store import (
    CURRENT_TAG,
    STUDENT_TAG,
    WORKSPACE_TAG,
    Store,
    TrackingOffError,
    connect,
    is_refusal,
    is_server,
    reached,
    reason,
    warn,
    workspace,
)

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

CHAMPION: Final = "champion"
"""The alias under which a serving process finds the model: `models:/<name>@champion`."""


VERSIONS_TAG: Final = "mlflow.modelVersions"


@final
@dataclass(frozen=True)
class Promotion:
    """What `promote` did."""

    model: str
    """Name of the registered model."""
    version: str
    student: str
    sha256: str
    is_new: bool
    """Whether the version was made now; False when these very bytes were registered before."""

    @property
    def page(self) -> str:
        """Its page, relative to the user interface's address."""
        return f"/#/models/{self.model}/versions/{self.version}"

    @property
    def uri(self) -> str:
        """The name by which MLflow loads and serves it."""
        return f"models:/{self.model}@{CHAMPION}"


def promote(root: Path, label: str) -> Promotion:
    """Make a student's ONNX file the champion of the registered model; a second call changes nothing.

    Args:
        label: a student's name or the id of a run, followed by `/` and a form for another file than the float32 one.

    Raises:
        TrackingError: there is no such student or run, it has no such model, what the store keeps of it was changed,
            or the store cannot be used.
        ArtifactError: the exported file was changed after its export.
    """
    name_or_run_id, _, form = label.partition("/")
    form = form or FLOAT32
    with reached(root) as store:
        run = _run_to_promote(store, root, name_or_run_id)
        found = _exported_model(store, root, run, form) if _is_current(store, root, run) else None
        chosen = found or next((model for model in models_of(store, run) if model.form == form), None)
        if chosen is None or chosen.sha256 is None:
            lacks = "ONNX model" if form == FLOAT32 else f"form {form}"
            raise TrackingError(f"run {run.info.run_id} has no {lacks}; promote one of {_known(root)}")
        if stored_sha256(store, chosen.model) != chosen.sha256:
            raise TrackingError(
                f"{chosen.model.artifact_location} was changed after it was logged: model.onnx is not the file with "
                f"SHA-256 {chosen.sha256[:12]}; delete run {run.info.run_id} and run `compress sync`"
            )
        version, is_new = _register(store, run, chosen)
        store.client.set_registered_model_alias(store.registry_name, CHAMPION, version)
        return Promotion(store.registry_name, version, _student(run), chosen.sha256, is_new)


def mark_current(root: Path, names: Iterable[str]) -> None:
    """Tag the runs of these networks `current=true` and every other of this project's runs `false`.

    Never fatal: what is wrong is said in one line.
    """
    try:
        mark_current_in(connect(root), root, names)
    except TrackingOffError:
        return
    except Exception as problem:  # a store that is away must not stop the stage, whatever its client raises
        warn(f"runs could not be marked as current ({reason(problem)}); `compress sync` does it later")


def mark_current_in(store: Store, root: Path, names: Iterable[str]) -> None:
    """The same in an open store; raises what MLflow raises."""
    current = {run.info.run_id for name in names if (run := run_of_results(store, root, name)) is not None}
    # A queued experiment has results of its own and does not make the workspace's runs outdated.
    marked = store.search({CURRENT_TAG: "true", WORKSPACE_TAG: workspace(root)})
    for run in marked:
        if run.info.run_id not in current:
            store.client.set_tag(run.info.run_id, CURRENT_TAG, "false")
            _end_abandoned(store, run)
    for run_id in current - {run.info.run_id for run in marked}:
        store.client.set_tag(run_id, CURRENT_TAG, "true")


def run_of_results(store: Store, root: Path, name: str) -> Run | None:
    """The run of the results that lie in the project; None when the store has none.

    Raises:
        ArtifactError: the results are missing or damaged.
    """
    layout = Layout(root)
    training = read_json(layout.results(name) / "training.json", made_by="training")
    run_id = read_json(layout.run(name), made_by="training")["run_id"] if layout.run(name).exists() else None
    return store.find_run(name, run_id=run_id, fingerprint=trained_fingerprint(training))


def trained_names(root: Path) -> list[str]:
    """Networks with results in the project."""
    layout = Layout(root)
    names = {path.parent.name for path in layout.results("*").parent.glob("*/training.json")}
    return sorted(names - ({TEACHER} if is_absent(layout.teacher) else set()))


def _end_abandoned(store: Store, run: Run) -> None:
    """A superseded run that still claims to be running was killed before it could say so."""
    if run.info.status == "RUNNING":
        end = end_event("KILLED")
        store.client.set_terminated(run.info.run_id, end["status"], end["time"])


def _run_to_promote(store: Store, root: Path, name_or_run_id: str) -> Run:
    if name_or_run_id in trained_names(root):
        run = run_of_results(store, root, name_or_run_id)
        if run is None:
            raise TrackingError(f"the store has no run of {name_or_run_id}; run `compress sync` first")
        return run
    run = store.get_run(name_or_run_id)
    if run is None:
        raise TrackingError(f"no student or run {name_or_run_id!r}; there are {_known(root)}, or give a run's id")
    return run


def _known(root: Path) -> str:
    return ", ".join(trained_names(root)) or "no trained networks yet"


def _student(run: Run) -> str:
    return run.data.params.get("student") or run.data.tags.get(STUDENT_TAG) or run.info.run_id


def _is_current(store: Store, root: Path, run: Run) -> bool:
    """Whether this run made the files that lie in the project now."""
    if _student(run) not in trained_names(root):
        return False
    found = run_of_results(store, root, _student(run))
    return found is not None and found.info.run_id == run.info.run_id


def _exported_model(store: Store, root: Path, run: Run, form: str) -> ModelOfRun | None:
    """The run's model with the bytes of the project's exported file, logged now if the run does not have it yet."""
    event = next((event for event in model_events(root, _student(run)) if event["form"] == form), None)
    if event is None:
        return None
    _require_exported_bytes(root, _student(run), event)
    log_model(store, run.info.run_id, event)
    models = models_of(store, store.client.get_run(run.info.run_id))
    return next(model for model in models if model.sha256 == event["sha256"])


def _require_exported_bytes(root: Path, name: str, event: dict[str, Any]) -> None:
    """Refuse a file that is not the one that export.json describes."""
    export = read_json(Layout(root).exported(name) / "export.json", made_by="export")
    files = (export["shipped"], *export.get("forms", ()))
    described = next(file for file in files if file.get("form", FLOAT32) == event["form"])
    require_same_bytes(Path(event["path"]), described["sha256"])


def model_events(root: Path, name: str) -> list[dict[str, Any]]:
    """The forms of a network that may be shipped, as events, the float32 file last; none before the export."""
    layout = Layout(root)
    folder, measured = layout.exported(name), layout.results(name) / "evaluation.json"
    if not (folder / "export.json").exists():
        return []
    export = read_json(folder / "export.json", made_by="export")
    # A form is worth something only if its evaluation found it to be.
    of_forms = read_json(measured, made_by="evaluate").get("forms", {}) if measured.exists() else {}
    files = [file for file in export.get("forms", ()) if file["form"] in of_forms] + [export["shipped"]]
    step = _last_epoch(layout, name, export["shipped"]["seed"])
    return [
        model_event(
            folder / file["file"], name=name, form=form, step=step, metrics=of_forms.get(form, {}), example=None
        )
        for file in files
        for form in [file.get("form", FLOAT32)]
        if (folder / file["file"]).exists()
    ]


def _last_epoch(layout: Layout, name: str, seed: int) -> int:
    training = read_json(layout.results(name) / "training.json", made_by="training")
    return next((entry["last"]["epoch"] for entry in training["seeds"] if entry["seed"] == seed), 0)


def _register(store: Store, run: Run, chosen: ModelOfRun) -> tuple[str, bool]:
    """The version with these bytes, and whether it was made now."""
    assert chosen.sha256 is not None
    for version in _versions(store):
        if version.tags.get(SHA256_TAG) == chosen.sha256:
            return str(version.version), False
    model_id = chosen.model.model_id
    with _as_default(store):
        created = store.client.create_model_version(
            store.registry_name,
            f"models:/{model_id}",
            run_id=run.info.run_id,
            tags=_version_tags(run, chosen),
            description=f"{_called(run, chosen)}. To download it: Source Model, Artifacts, model.onnx.",
            model_id=model_id,
        )
    if not is_server(store.uri):
        # A server links the model to its version; a database opened directly is left without the link.
        versions = [{"name": store.registry_name, "version": created.version}]
        store.client.set_logged_model_tags(model_id, {VERSIONS_TAG: json.dumps(versions)})
    return str(created.version), True


@contextmanager
def _as_default(store: Store) -> Generator[None]:
    """Name the store in the environment: a database's registry looks the model up in the process's default store."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = store.uri
    try:
        yield
    finally:
        if before is None:
            del os.environ["MLFLOW_TRACKING_URI"]
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before


def _versions(store: Store) -> list[ModelVersion]:
    from mlflow.exceptions import MlflowException

    try:
        store.client.create_registered_model(store.registry_name, description="Chosen students as ONNX files.")
    except MlflowException as problem:
        if not is_refusal(problem):
            raise
    return list(store.client.search_model_versions(f"name='{store.registry_name}'"))


def _called(run: Run, chosen: ModelOfRun) -> str:
    return f"Student {_student(run)}" + ("" if chosen.form == FLOAT32 else f", {chosen.form}")


def _version_tags(run: Run, chosen: ModelOfRun) -> dict[str, Any]:
    metrics = run.data.metrics
    tags: dict[str, Any] = {"student": _student(run), "method": run.data.params.get("method", "")}
    tags[SHA256_TAG] = chosen.sha256
    if chosen.form != FLOAT32:
        tags[FORM_TAG] = chosen.form
        metrics = {metric.key: metric.value for metric in chosen.model.metrics or ()}
    for tag, metric in (("accuracy", "accuracy_top1"), ("latency_ms", "latency_ms_p50")):
        if metric in metrics:
            tags[tag] = f"{metrics[metric]:g}"
    return tags
