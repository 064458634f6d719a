"""A deployed student: a tiny network through the project's own exporter, in a folder with golden answers and manifest.

Nothing of the server is imported here, so that tests of what needs no server run without its packages.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import nn

from compress.data.preprocessing import Preprocessing, resize_and_crop
from compress.deploy_manifest import write_manifest
from compress.export import ExportSettings, export_onnx
from compress.verify import write_golden

CLASSES = ("cat", "dog", "fox", "grün")
SIZE = 24
PREPROCESSING = resize_and_crop(SIZE, crop_fraction=0.75, interpolation="bicubic", alpha_background="white")
NUM_GOLDEN = 3


def network(*, hidden: int = 8) -> nn.Module:
    """A network whose answer depends on colours and on where they are."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return nn.Sequential(
            nn.Conv2d(3, hidden, 5, stride=4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(hidden * 25, len(CLASSES)),
        )


def export_student(path: Path) -> Path:
    """The network as a file."""
    metadata = {"classes": list(CLASSES), "name": "tiny", "preprocessing": PREPROCESSING.model_dump(mode="json")}
    export_onnx(network(), path, image_size=(SIZE, SIZE), settings=ExportSettings(), metadata=metadata)
    return path


def write_folder(
    folder: Path, model: Path, *, classes: tuple[str, ...] = CLASSES, size: tuple[int, int] = (SIZE, SIZE)
) -> Path:
    """A deploy folder around an exported file."""
    import onnxruntime

    folder.mkdir()
    shutil.copyfile(model, folder / "model.onnx")
    (folder / "labels.json").write_text(json.dumps(classes))
    images = np.random.default_rng(3).integers(0, 256, (NUM_GOLDEN, *size, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    write_golden(folder, images, session.run(["logits"], {"image": images})[0])
    write_manifest(folder)
    return folder


__all__ = ["CLASSES", "NUM_GOLDEN", "PREPROCESSING", "SIZE", "Preprocessing", "export_student", "write_folder"]
