"""Stage export: every trained network of one name as an ONNX file that is proved to compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue

from compress.artifact import ModelCard, load_model
from compress.data.prepared import load_prepared
from compress.export import ExportSettings, export_onnx
from compress.files import read_json, write_json
from compress.parity import Parity, assert_parity
from compress.runtime import OnnxPredictor, load_predictor
from compress.settings import Settings
from compress.torch_predictor import TorchPredictor
from pipelines.absence import is_absent, leave_note
from pipelines.layout import TEACHER, Layout
from pipelines.params import load_params
from pipelines.samples import sample_images

FORM = "float32"


class ExportParams(Settings):
    """Sections that this stage reads."""

    export: ExportSettings = ExportSettings()


def run(root: Path, name: str) -> None:
    """Export each seed of a student, or the teacher, and name the file that is shipped.

    Raises:
        ParityError: an exported file and its network disagree by more than the tolerance.
    """
    layout = Layout(root)
    settings = load_params(ExportParams, layout.params).export
    if name == TEACHER and is_absent(layout.teacher):
        leave_note(layout.exported(TEACHER))
        return
    training = read_json(layout.results(name) / "training.json", made_by="teacher" if name == TEACHER else "distill")
    images = sample_images(load_prepared(layout.prepared).split("validation"), settings.num_parity_images)
    files: list[dict[str, Any]] = []
    for summary in training["seeds"]:
        seed = summary["seed"]
        folder = layout.teacher if name == TEACHER else layout.trained(name, seed, settings.weights)
        path = layout.exported(name) / f"seed_{seed}" / f"{FORM}.onnx"
        network, card = load_model(folder)
        export_onnx(
            network, path, image_size=(card.height, card.width), settings=settings, metadata=_metadata(name, card)
        )
        exported = load_predictor(path)
        parity = assert_parity(
            TorchPredictor(network, torch.device("cpu")), exported, images, tolerance=settings.tolerance
        )
        files.append(_entry(path.relative_to(layout.exported(name)), seed, card, exported, parity))
        print(
            f"{name} seed {seed}: {exported.size_bytes / 1e6:.3f} MB, differs from torch by "
            f"{parity.relative_error:.1e} of the largest logit on {parity.num_images} images"
        )
    # Chosen on validation, so that the test accuracy of the shipped file stays an honest estimate.
    shipped = max(files, key=lambda file: (file["accuracy_top1_validation"], -file["seed"]))
    write_json(layout.exported(name) / "export.json", {"shipped": shipped, "files": files})


def _metadata(name: str, card: ModelCard) -> dict[str, JsonValue]:
    """What whoever meets the file alone wants to know."""
    return {
        "name": name,
        "task": "image classification",
        "classes": list(card.classes),
        "input": "image: uint8 RGB pixels, batch x height x width x 3; normalisation is inside",
        "output": "logits: float32, batch x classes",
        "preprocessing": dict(card.preprocessing),
        "architecture": card.architecture.model_dump(mode="json", exclude_none=True),
        "training": card.training,
        "seed": card.seed,
        "epoch": card.epoch,
        "metrics": dict(card.metrics),
        "num_parameters": card.num_parameters,
        "flops": card.flops,
        "fingerprint": card.fingerprint,
        "weights_sha256": card.weights_sha256,
        "lineage": dict(card.lineage),
    }


def _entry(file: Path, seed: int, card: ModelCard, exported: OnnxPredictor, parity: Parity) -> dict[str, Any]:
    """What export.json says about one file."""
    return {
        "seed": seed,
        "form": FORM,
        "file": str(file),
        "sha256": exported.sha256,
        "size_bytes": exported.size_bytes,
        "epoch": card.epoch,
        "accuracy_top1_validation": card.metrics["accuracy_top1_validation"],
        "num_parameters": card.num_parameters,
        "flops": card.flops,
        "parity": parity.model_dump(mode="json"),
    }
