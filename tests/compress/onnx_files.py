"""A real ONNX file made by hand in milliseconds, with the interface of exported ones, and what it computes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = ("red", "green", "blue")
SIZE = (4, 6)


def colour_model(*, classes: tuple[str, ...] = CLASSES, weight: float = 1.0) -> onnx.ModelProto:
    """Logits are the mean red, green and blue of an image, in 0..255, times `weight`; answers with its main colour."""
    height, width = SIZE
    constants = (
        numpy_helper.from_array(np.array([1, 2], dtype=np.int64), "axes"),
        numpy_helper.from_array(np.array(weight, dtype=np.float32), "weight"),
    )
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0),
        helper.make_node("Mul", ["means", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", height, width, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(model, {"classes": json.dumps(classes)})
    return model


def write_colour_model(path: Path, *, classes: tuple[str, ...] = CLASSES, weight: float = 1.0) -> Path:
    """The model as a file."""
    path.write_bytes(colour_model(classes=classes, weight=weight).SerializeToString())
    return path


def colour_logits(images: np.ndarray) -> np.ndarray:
    """What the model computes, said in numpy."""
    return images.astype(np.float32).mean(axis=(1, 2))


def random_images(num_images: int, size: tuple[int, int] = SIZE, *, seed: int = 0) -> np.ndarray:
    """Noise, uint8 (N H W 3)."""
    return np.random.default_rng(seed).integers(0, 256, (num_images, *size, 3), dtype=np.uint8)
