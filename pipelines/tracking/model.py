"""An exported ONNX file as a model of its run: one file, byte for byte the one that DVC tracks."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from compress.fingerprint import file_sha256
from pipelines.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run
    from mlflow.models import ModelSignature
    from onnx import ModelProto, ValueInfoProto

SHA256_TAG: Final = "sha256"
MODEL_FILE: Final = "model.onnx"
"""MLflow's name for it inside a model's folder."""


class ModelOfRun(NamedTuple):
    """A complete model and the step of its run at which it was logged."""

    model: LoggedModel
    step: int

    @property
    def sha256(self) -> str | None:
        """Hash of its ONNX file."""
        return self.model.tags.get(SHA256_TAG)


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
    metrics = [
        Metric(key, value, event["time"], found.step, model_id=found.model.model_id, run_id=run_id)
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
    model = client.create_logged_model(
        run.info.experiment_id,
        name=event["name"],
        source_run_id=run.info.run_id,
        tags={SHA256_TAG: event["sha256"], "student": event["name"]},
        params=run.data.params,
        model_type="onnx",
    )
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            _write_folder(folder, model, event)
            client.log_model_artifacts(model.model_id, str(folder))
            _assert_same_bytes(store, model, event["sha256"], Path(temporary))
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


def _assert_same_bytes(store: Store, model: LoggedModel, sha256: str, folder: Path) -> None:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    uri = f"{model.artifact_location}/{MODEL_FILE}"
    stored = download_artifacts(artifact_uri=uri, dst_path=str(folder), tracking_uri=store.uri)
    if file_sha256(Path(stored)) != sha256:
        raise MlflowException(f"the store keeps other bytes than were sent: {uri}")


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
