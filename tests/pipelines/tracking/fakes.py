"""A project as its stages would leave it, small enough to be tracked many times."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipelines.tracking.events import file_sha256

SIZE = 8
CLASSES = ("cat", "dog", "fish")


def write_onnx(path: Path, seed: int) -> Path:
    """A linear classifier of the exporter's form: uint8 `image` (N H W 3) in, float32 `logits` (N C) out."""
    weights = np.random.default_rng(seed).normal(size=(SIZE * SIZE * 3, len(CLASSES))).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "student",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(CLASSES)])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(model, {"classes": json.dumps(CLASSES)})
    path.parent.mkdir(parents=True, exist_ok=True)
    # A field that onnx does not know, in front: whoever parses and writes the file anew moves it to the end.
    path.write_bytes(b"\xfa\x7f\x03abc" + model.SerializeToString())
    assert onnx.load(path).SerializeToString() != path.read_bytes()
    return path


def write_student(
    root: Path,
    name: str,
    *,
    run_id: str | None = None,
    method: dict[str, Any] | None = None,
    accuracy: float = 0.9,
    latency_ms: float = 0.5,
    seeds: tuple[int, ...] = (0,),
    epochs: int = 3,
) -> None:
    """Everything that training, export and evaluation leave about one network."""
    results = root / "results" / name
    results.mkdir(parents=True, exist_ok=True)
    settings = {
        "model": {"source": "cnn", "channels": [8, 16]},
        "method": method or {"name": "kd", "temperature": 4.0, "alpha": 0.9},
        "train": {"epochs": epochs, "optimizer": {"name": "sgd", "learning_rate": 0.1}},
        "seeds": list(seeds),
    }
    training = {
        "student": name,
        "stage": "teacher" if name == "teacher" else "distill",
        "settings": settings,
        "data_fingerprint": "d" * 64,
        "seeds": [
            {"seed": seed, "train_seconds": 1.5, "fingerprint": f"{name}-{seed}", "last": {"epoch": epochs}}
            for seed in seeds
        ],
    }
    _write(results / "training.json", training)
    _write(results / "run.json", {"run_id": run_id})
    with (results / "history.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["seed", "epoch", "train_loss", "validation_accuracy_top1", "learning_rate"])
        for seed in seeds:
            for epoch in range(1, epochs + 1):
                writer.writerow([seed, epoch, 1.0 / (epoch + seed), accuracy - 0.3 / epoch, 0.1])
    path = write_onnx(root / "exports" / name / "seed_0" / "float32.onnx", seed=sum(name.encode()))
    shipped = {"seed": 0, "file": "seed_0/float32.onnx", "sha256": file_sha256(path)}
    _write(root / "exports" / name / "export.json", {"shipped": shipped, "files": [shipped]})
    metrics = {
        "accuracy_top1": accuracy,
        "gap_to_teacher": 0.98 - accuracy,
        "latency_ms_p50": latency_ms,
        "speedup": 5.0 / latency_ms,
        "size_mb": path.stat().st_size / 1e6,
    }
    _write(results / "evaluation.json", {"metrics": metrics})


def write_form(root: Path, name: str, form: str, *, accuracy: float = 0.89, latency_ms: float = 0.2) -> Path:
    """A further form of a student's file that export and evaluation kept."""
    path = write_onnx(root / "exports" / name / "seed_0" / f"{form}.onnx", seed=sum(form.encode()))
    file = {"seed": 0, "form": form, "file": f"seed_0/{form}.onnx", "sha256": file_sha256(path)}
    export = json.loads((root / "exports" / name / "export.json").read_text())
    _write(root / "exports" / name / "export.json", export | {"forms": [*export.get("forms", []), file]})
    evaluation = json.loads((root / "results" / name / "evaluation.json").read_text())
    metrics = {"accuracy_top1": accuracy, "latency_ms_p50": latency_ms, "speedup_over_float32": 0.5 / latency_ms}
    _write(root / "results" / name / "evaluation.json", evaluation | {"forms": {form: metrics}})
    return path


def select(root: Path, names: list[str], champion: str) -> None:
    """The table of students that the select stage leaves."""
    students = [{"name": name, "champion": name == champion} for name in names]
    _write(root / "metrics" / "students.json", {"students": students})


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
