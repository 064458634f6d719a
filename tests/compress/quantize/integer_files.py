"""Files with a single quantised layer, made by hand, and what processors with and without VNNI compute from them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

SIZE = (5, 6)


class Case(NamedTuple):
    """A layer on images of three channels, whose pixels are its 8-bit activations."""

    operator: str = "Conv"
    outputs: int = 4
    kernel: int = 3
    group: int = 1
    stride: int = 1
    pad: int = 1
    signed: bool = False
    """Activations are stored as int8, 128 lower."""
    zero_point: int = 7
    """Of the activations, counted from 0 also where they are signed."""
    largest_weight: int = 127

    @property
    def weight(self) -> np.ndarray:
        """Integers that follow from the case alone."""
        shape = (
            (self.outputs, 3 // self.group, self.kernel, self.kernel)
            if self.operator == "Conv"
            else (self.outputs, 3 * SIZE[0] * SIZE[1])
        )
        random = np.random.default_rng(self.outputs)
        return random.integers(-self.largest_weight, self.largest_weight + 1, shape).astype(np.int8)


def images(num_images: int = 3) -> np.ndarray:
    """Bright and dark noise, uint8 (N H W 3)."""
    return np.random.default_rng(5).integers(0, 256, (num_images, *SIZE, 3), dtype=np.uint8)


def write_case(path: Path, case: Case) -> Path:
    """Pixels, minus the zero point, through the layer; a convolution's answer is averaged over pixels."""
    stored = np.int8 if case.signed else np.uint8
    zero_point = np.array(case.zero_point - 128 if case.signed else case.zero_point, dtype=stored)
    constants = {
        "one": np.array(1, dtype=np.float32),
        "zero_point": zero_point,
        "offset": np.array(case.zero_point, dtype=np.float32),
        "weight": case.weight,
        "weight_scale": np.linspace(0.01, 0.02, case.outputs).astype(np.float32),
        "weight_zero_point": np.zeros(case.outputs, dtype=np.int8),
        "result_scale": np.array(17.31, dtype=np.float32),
        "result_zero_point": np.array(128, dtype=np.uint8),
        "axes": np.array([2, 3], dtype=np.int64),
        "flat": np.array([0, -1], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["image"], ["first"], "to_channels_first", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["first"], ["float"], "to_float", to=TensorProto.FLOAT),
        # Minus and plus the zero point: the stored activations are the pixels themselves.
        helper.make_node("Sub", ["float", "offset"], ["values"], "to_values"),
        *_layer(case),
    ]
    graph = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", *SIZE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", case.outputs])],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if _is_used(name, nodes)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(model, {"classes": str([str(i) for i in range(case.outputs)]).replace("'", '"')})
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    return path


def expected_logits(case: Case, pixels: np.ndarray, *, saturates: bool) -> np.ndarray:
    """Product by product, as a processor adds them: neighbours first, in 16 bits where there is no VNNI."""
    weight = case.weight.astype(np.int64)
    scale = np.linspace(0.01, 0.02, case.outputs).astype(np.float32)
    stored = pixels.transpose(0, 3, 1, 2).astype(np.int64)
    if case.operator == "Gemm":
        sums = _sums(stored.reshape(len(stored), -1), weight, saturates=saturates)
        return (sums - case.zero_point * weight.sum(axis=1)) * scale
    per_group = case.outputs // case.group
    padded = np.pad(
        stored, ((0, 0), (0, 0), (case.pad, case.pad), (case.pad, case.pad)), constant_values=case.zero_point
    )
    rows = range(0, padded.shape[2] - case.kernel + 1, case.stride)
    columns = range(0, padded.shape[3] - case.kernel + 1, case.stride)
    result = np.empty((len(pixels), case.outputs, len(rows), len(columns)))
    is_depthwise = case.group == case.outputs == 3
    for output in range(case.outputs):
        first = output // per_group * (3 // case.group)
        channels = slice(first, first + 3 // case.group)
        taps = weight[output].transpose(1, 2, 0).reshape(1, -1)
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                patch = padded[:, channels, row : row + case.kernel, column : column + case.kernel]
                patch = patch.transpose(0, 2, 3, 1).reshape(len(pixels), -1)
                result[:, output, i, j] = _sums(patch, taps, saturates=saturates and not is_depthwise)[:, 0]
    result -= (case.zero_point * weight.sum(axis=(1, 2, 3)))[:, None, None]
    values = result.astype(np.float32) * scale[:, None, None]
    levels = np.clip(np.rint(values / np.float32(17.31)) + 128, 0, 255) - 128
    return (levels * np.float32(17.31)).mean(axis=(2, 3))


def _sums(inputs: np.ndarray, weight: np.ndarray, *, saturates: bool) -> np.ndarray:
    """Matrix product of (N, K) and (O, K) through sums of neighbouring products."""
    odd = inputs.shape[1] % 2
    inputs, weight = np.pad(inputs, ((0, 0), (0, odd))), np.pad(weight, ((0, 0), (0, odd)))
    products = inputs[:, None, :] * weight[None, :, :]
    pairs = products[..., 0::2] + products[..., 1::2]
    return (np.clip(pairs, -(2**15), 2**15 - 1) if saturates else pairs).sum(axis=-1)


def _layer(case: Case) -> list[NodeProto]:
    activations = ["QuantizeLinear", "DequantizeLinear"]
    nodes = [
        helper.make_node(activations[0], ["values", "one", "zero_point"], ["stored"], "round_input"),
        helper.make_node(activations[1], ["stored", "one", "zero_point"], ["input"], "unpack_input"),
        helper.make_node(
            "DequantizeLinear", ["weight", "weight_scale", "weight_zero_point"], ["unpacked"], "unpack_weight", axis=0
        ),
    ]
    if case.operator == "Gemm":
        return [
            *nodes,
            helper.make_node("Reshape", ["input", "flat"], ["moved"], "flatten"),
            helper.make_node(activations[0], ["moved", "one", "zero_point"], ["stored_flat"], "round_flat"),
            helper.make_node(activations[1], ["stored_flat", "one", "zero_point"], ["flat_input"], "unpack_flat"),
            helper.make_node("Gemm", ["flat_input", "unpacked"], ["logits"], "layer", transB=1),
        ]
    return [
        *nodes,
        helper.make_node(
            "Conv",
            ["input", "unpacked"],
            ["result"],
            "layer",
            kernel_shape=[case.kernel] * 2,
            group=case.group,
            strides=[case.stride] * 2,
            pads=[case.pad] * 4,
        ),
        helper.make_node("QuantizeLinear", ["result", "result_scale", "result_zero_point"], ["levels"], "round_result"),
        helper.make_node(
            "DequantizeLinear", ["levels", "result_scale", "result_zero_point"], ["maps"], "unpack_result"
        ),
        helper.make_node("ReduceMean", ["maps", "axes"], ["logits"], "mean", keepdims=0),
    ]


def _is_used(name: str, nodes: list[NodeProto]) -> bool:
    return any(name in node.input for node in nodes)
