"""A deploy folder to try a server with where no student is trained: weights do not change what an answer costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def fresh_folder(scratch: Path, source: dict[str, Any], image_size: int) -> Path:
    """A deploy folder with a network of fresh weights and its float form."""
    import onnxruntime
    from pydantic import JsonValue, TypeAdapter

    from compress.data.preprocessing import resize_and_crop
    from compress.deploy_manifest import write_manifest
    from compress.export import ExportSettings, export_onnx
    from compress.export.float_forms import write_float_entry
    from compress.models import ModelSource, Statistics, build_network
    from compress.verify import write_golden

    size = (image_size, image_size)
    classes = [f"class {number}" for number in range(100)]
    network = build_network(
        TypeAdapter[Any](ModelSource).validate_python(source),
        num_classes=len(classes),
        image_size=size,
        statistics=Statistics(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
    )
    crop_fraction = 1.0 if image_size <= 64 else 0.875
    rule = resize_and_crop(image_size, crop_fraction=crop_fraction, interpolation="bilinear", alpha_background="white")
    metadata: dict[str, JsonValue] = {
        "name": "fresh",
        "classes": [*classes],
        "preprocessing": rule.model_dump(mode="json"),
    }
    folder = scratch / "deploy"
    export_onnx(network, folder / "model.onnx", image_size=size, settings=ExportSettings(), metadata=metadata)
    write_float_entry(folder / "model.onnx", folder / "model.float.onnx")
    (folder / "labels.json").write_text(json.dumps(classes))
    images = np.random.default_rng(0).integers(0, 256, (4, *size, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    write_golden(folder, images, np.asarray(session.run(["logits"], {"image": images})[0]))
    write_manifest(folder)
    return folder
