"""An exported ONNX file as a model of its run: one file, byte for byte the one that DVC tracks."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from compress.fingerprint import file_sha256
from compress.select import FLOAT32
from pipelines.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run
    from mlflow.models import ModelSignature
    from onnx import ModelProto, ValueInfoProto

SHA256_TAG: Final = "sha256"
FORM_TAG: Final = "form"
FORMS_TAG: Final = "forms"
BEFORE_TRAINING: Final = 0
"""A step before every epoch."""
MODEL_FILE: Final = "model.onnx"
"""MLflow's name for it inside a model's folder."""


def forms_in_words(others: Iterable[str]) -> str:
    """What a run says about the forms of its student that may be shipped."""
    return ", ".join([FLOAT32, *others])


class ModelOfRun(NamedTuple):
    """A complete model and the step of its run at which it was logged."""

    model: LoggedModel
    step: int

    @property
    def sha256(self) -> str | None:
        """Hash of its ONNX file."""
        return self.model.tags.get(SHA256_TAG)

    @property
    def form(self) -> str:
        """Form of its ONNX file; models that were logged before there were forms are in float32."""
        return self.model.tags.get(FORM_TAG, FLOAT32)


def log_model(store: Store, run_id: str, event: Mapping[str, Any]) -> None:
    """Log the file as a model of the run, unless the run has it already, and its metrics with it.

    Raises:
        FileNotFoundError: the file is gone, or holds other bytes by now.
        Exception: whatever MLflow raises.
    """
    from mlflow.entities import LoggedModelOutput, Metric

    run = store.client.get_run(run_id)
    found = next((known for known in models_of(store, run) if known.sha256 == event["sha256"]), None)
    if found is None:
        if file_sha256(Path(event["path"])) != event["sha256"]:
            raise FileNotFoundError(f"{event['path']} has changed since it was exported")
        found = ModelOfRun(_create(store, run, event), event["step"])
        store.client.log_outputs(run_id, [LoggedModelOutput(found.model.model_id, step=found.step)])
    # MLflow logs a model's metrics with its run too, where those of the last step are shown: those of float32.
    step = found.step if found.form == FLOAT32 else BEFORE_TRAINING
    metrics = [
        Metric(key, value, event["time"], step, model_id=found.model.model_id, run_id=run_id)
        for key, value in event["metrics"].items()
    ]
    if metrics:
        store.client.log_batch(run_id, metrics=metrics, synchronous=True)


def models_of(store: Store, run: Run) -> list[ModelOfRun]:
    """The complete models of a run, newest first."""
    outputs = run.outputs.model_outputs if run.outputs else []
    models = [ModelOfRun(store.client.get_logged_model(output.model_id), output.step) for output in outputs]
    complete = [known for known in models if known.model.status.value == "READY"]
    return sorted(complete, key=lambda known: known.model.creation_timestamp, reverse=True)


def _create(store: Store, run: Run, event: Mapping[str, Any]) -> LoggedModel:
    client = store.client
    form = event.get("form", FLOAT32)  # events that have waited since before there were forms
    model = client.create_logged_model(
        run.info.experiment_id,
        name=event["name"] if form == FLOAT32 else f"{event['name']}_{form}",
        source_run_id=run.info.run_id,
        tags={SHA256_TAG: event["sha256"], "student": event["name"], FORM_TAG: form},
        params=run.data.params,
        model_type="onnx",
    )
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            _write_folder(folder, model, event)
            client.log_model_artifacts(model.model_id, str(folder))
            _assert_same_bytes(store, model, event["sha256"])
    except BaseException:
        with suppress(Exception):  # the store may be the reason; the first problem is the one to tell
            client.finalize_logged_model(model.model_id, "FAILED")
        raise
    return client.finalize_logged_model(model.model_id, "READY")


def _write_folder(folder: Path, model: LoggedModel, event: Mapping[str, Any]) -> None:
    """An MLflow model around the file as it is; log_model itself would write the file anew."""
    import numpy as np
    import onnx
    from mlflow.models import Model
    from mlflow.onnx import save_model

    network = onnx.load(event["path"])
    pixels = event["example"]
    example: Any = None if pixels is None else {_input(network).name: np.array(pixels, dtype=np.uint8)}
    save_model(
        network,
        str(folder),
        mlflow_model=Model(
            artifact_path=model.artifact_location,
            run_id=model.source_run_id,
            model_uuid=model.model_id,
            model_id=model.model_id,
        ),
        signature=_signature(network),
        input_example=example,
        # Named here because finding out takes MLflow seconds per model.
        pip_requirements=[f"{package}=={version(package)}" for package in ("onnxruntime", "onnx", "numpy", "pandas")],
        onnx_execution_providers=["CPUExecutionProvider"],
        metadata={"sha256": event["sha256"], **{entry.key: entry.value for entry in network.metadata_props}},
        # By default the weights go to a second file with a random name, and model.onnx alone does not load.
        save_as_external_data=False,
    )
    shutil.copyfile(event["path"], folder / MODEL_FILE)


def stored_sha256(store: Store, model: LoggedModel) -> str:
    """Hash of the ONNX file that the store would give out now."""
    from mlflow.artifacts import download_artifacts

    uri = f"{model.artifact_location}/{MODEL_FILE}"
    with tempfile.TemporaryDirectory() as folder:
        return file_sha256(Path(download_artifacts(artifact_uri=uri, dst_path=folder, tracking_uri=store.uri)))


def _assert_same_bytes(store: Store, model: LoggedModel, sha256: str) -> None:
    from mlflow.exceptions import MlflowException

    if stored_sha256(store, model) != sha256:
        raise MlflowException(f"the store keeps other bytes than were sent: {model.artifact_location}/{MODEL_FILE}")


def _signature(network: ModelProto) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import Schema

    return ModelSignature(Schema([_tensor(_input(network))]), Schema([_tensor(network.graph.output[0])]))


def _input(network: ModelProto) -> ValueInfoProto:
    return network.graph.input[0]


def _tensor(value: ValueInfoProto) -> Any:
    import onnx
    from mlflow.types import TensorSpec

    tensor = value.type.tensor_type
    shape = tuple(size.dim_value or -1 for size in tensor.shape.dim)
    return TensorSpec(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type), shape, value.name)
