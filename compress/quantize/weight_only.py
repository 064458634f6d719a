"""Small weights, float32 arithmetic: for the size of the file alone.

Weights are stored with few bits and unpacked by ordinary operators on constants. A runtime computes such nodes once,
when it loads the file, so that the speed is that of float32. DequantizeLinear, which says the same in one node, is
not folded by ONNX Runtime and made a small residual network 2.8 times slower; MatMulNBits is not an ONNX operator.
"""

from __future__ import annotations

from typing import Literal, final

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from compress.errors import ModelError
from compress.export.exported import ExportedModel, drop_unused_constants_
from compress.quantize.base import CalibrationImages, Converted, Quantizer
from compress.quantize.source import Layer, check_excluded, layers

Storage = Literal["float16", "bfloat16", "int8", "int4"]

GROUP = 32
"""Weights that share a scale in 4 bits."""
MIN_ELEMENTS = {"float16": 128, "bfloat16": 128, "int8": 512, "int4": 4096}
"""Smaller weights stay in float32: the nodes that unpack them would weigh more than they save."""
SHRINKS = np.linspace(1.0, 0.6, 9)
"""Cuts of a group's largest weight that are tried; a finer step for the rest often outweighs the clipped one."""
LARGEST_FLOAT16 = 65504.0


@final
class WeightOnly(Quantizer):
    """Weights in fewer bits, unpacked to float32 when the file is loaded."""

    name: Literal["weight_only"] = "weight_only"
    storage: Storage = "int8"
    """int8 has a scale per output channel, int4 one per 32 weights and int8 for the first and the last layer."""
    excluded_nodes: tuple[str, ...] = ()
    """Layers that stay in float32, by the names of their nodes."""

    def convert(self, source: ExportedModel, calibration: CalibrationImages) -> Converted:
        check_excluded(source, self.excluded_nodes)
        model = source.copy()
        graph = model.graph
        every = layers(graph)
        nodes: list[NodeProto] = []
        done: set[str] = set()
        for layer in every:
            storage = self.storage
            if storage == "int4" and layer in (every[0], every[-1]):
                storage = "int8"
            if layer.name in self.excluded_nodes or layer.weight.name in done:
                continue
            if _num_elements(layer) >= MIN_ELEMENTS[storage]:
                nodes.extend(_packed(graph, layer, storage))
                done.add(layer.weight.name)
        if not done:
            raise ModelError(f"{source.path} has no weights large enough to save anything; keep float32")
        kept = [tensor for tensor in graph.initializer if tensor.name not in done]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        nodes.extend(graph.node)
        del graph.node[:]
        graph.node.extend(nodes)
        drop_unused_constants_(graph)
        return Converted(model, excluded_nodes=self.excluded_nodes)


def _num_elements(layer: Layer) -> int:
    return int(np.prod(layer.weight.dims))


def _packed(graph: GraphProto, layer: Layer, storage: Storage) -> list[NodeProto]:
    """Put the packed weight into the graph and return the nodes that unpack it under its name."""
    weight = numpy_helper.to_array(layer.weight)
    match storage:
        case "float16":
            return _half(graph, layer.weight.name, weight)
        case "bfloat16":
            return _bfloat(graph, layer.weight.name, weight)
        case "int8":
            return _int8(graph, layer.weight.name, weight, axis=layer.output_axis)
        case "int4":
            return _int4(graph, layer.weight.name, weight, axis=layer.output_axis)


def _half(graph: GraphProto, name: str, weight: np.ndarray) -> list[NodeProto]:
    largest = float(np.abs(weight).max())
    if not largest <= LARGEST_FLOAT16:
        raise ModelError(f"{name} holds {largest:.4g}, float16 ends at {LARGEST_FLOAT16:.0f}; use storage: bfloat16")
    _add_(graph, f"{name}.half", weight.astype(np.float16))
    return [_to_float(f"{name}.half", name)]


def _bfloat(graph: GraphProto, name: str, weight: np.ndarray) -> list[NodeProto]:
    # The upper half of a float32, rounded to the nearest, ties to even.
    bits = np.ascontiguousarray(weight, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    graph.initializer.append(
        helper.make_tensor(f"{name}.bfloat", TensorProto.BFLOAT16, weight.shape, rounded.tobytes(), raw=True)
    )
    return [_to_float(f"{name}.bfloat", name)]


def _int8(graph: GraphProto, name: str, weight: np.ndarray, *, axis: int) -> list[NodeProto]:
    others = tuple(dim for dim in range(weight.ndim) if dim != axis)
    scale = _scale(np.abs(weight).max(axis=others, keepdims=True), 127)
    _add_(graph, f"{name}.bytes", np.rint(weight / scale).astype(np.int8))
    _add_(graph, f"{name}.scale", scale)
    return [
        _to_float(f"{name}.bytes", f"{name}.whole"),
        helper.make_node("Mul", [f"{name}.whole", f"{name}.scale"], [name], f"{name}_scaled"),
    ]


def _int4(graph: GraphProto, name: str, weight: np.ndarray, *, axis: int) -> list[NodeProto]:
    """Two weights in a byte; groups run along an output channel, so the channel comes first in memory."""
    by_channel = np.moveaxis(weight, axis, 0)
    flat = by_channel.reshape(-1)
    groups = np.pad(flat, (0, -len(flat) % GROUP)).reshape(-1, GROUP)
    scale = _best_scale(groups).astype(np.float16)
    wide = scale.astype(np.float32)
    whole = np.clip(np.rint(np.divide(groups, wide, out=np.zeros_like(groups), where=wide > 0)), -8, 7)
    nibbles = (whole + 8).astype(np.uint8)
    _add_(graph, f"{name}.nibbles", nibbles[:, : GROUP // 2] | (nibbles[:, GROUP // 2 :] << 4))
    _add_(graph, f"{name}.scale", scale)
    _add_(graph, f"{name}.shape", np.array(by_channel.shape, dtype=np.int64))
    _add_(graph, f"{name}.size", np.array([weight.size], dtype=np.int64))
    for constant, value in INT4_CONSTANTS.items():
        _add_(graph, constant, value)
    channels_first = name if axis == 0 else f"{name}.channels_first"
    nodes = [
        helper.make_node("BitwiseAnd", [f"{name}.nibbles", "int4.mask"], [f"{name}.low"], f"{name}_low"),
        helper.make_node("BitShift", [f"{name}.nibbles", "int4.four"], [f"{name}.high"], direction="RIGHT"),
        helper.make_node("Concat", [f"{name}.low", f"{name}.high"], [f"{name}.unsigned"], f"{name}_unsigned", axis=1),
        _to_float(f"{name}.unsigned", f"{name}.shifted"),
        helper.make_node("Sub", [f"{name}.shifted", "int4.eight"], [f"{name}.whole"], f"{name}_whole"),
        _to_float(f"{name}.scale", f"{name}.wide"),
        helper.make_node("Mul", [f"{name}.whole", f"{name}.wide"], [f"{name}.groups"], f"{name}_groups"),
        helper.make_node("Reshape", [f"{name}.groups", "int4.flat"], [f"{name}.padded"], f"{name}_padded"),
        helper.make_node("Slice", [f"{name}.padded", "int4.zero", f"{name}.size"], [f"{name}.cut"], f"{name}_cut"),
        helper.make_node("Reshape", [f"{name}.cut", f"{name}.shape"], [channels_first], f"{name}_shaped"),
    ]  # fmt: skip
    if axis != 0:
        nodes.append(helper.make_node("Transpose", [channels_first], [name], f"{name}_transposed", perm=[1, 0]))
    return nodes


INT4_CONSTANTS = {
    "int4.mask": np.array(15, dtype=np.uint8),
    "int4.four": np.array(4, dtype=np.uint8),
    "int4.eight": np.array(8, dtype=np.float32),
    "int4.flat": np.array([-1], dtype=np.int64),
    "int4.zero": np.array([0], dtype=np.int64),
}


def _best_scale(groups: np.ndarray) -> np.ndarray:
    """For each group the scale with the least squared error, of a few cuts of its largest weight."""
    largest = np.abs(groups).max(axis=1, keepdims=True)
    best, least = _scale(largest, 7), np.full_like(largest, np.inf)
    for shrink in SHRINKS:
        scale = _scale(largest * np.float32(shrink), 7)
        rounded = np.clip(np.rint(groups / scale), -8, 7) * scale
        error = np.square(groups - rounded).sum(axis=1, keepdims=True)
        best = np.where(error < least, scale, best)
        least = np.minimum(error, least)
    return best


def _scale(largest: np.ndarray, levels: int) -> np.ndarray:
    """Size of a step; a channel of zeros takes any."""
    return np.where(largest > 0, largest / levels, 1).astype(np.float32)


def _to_float(given: str, result: str) -> NodeProto:
    return helper.make_node("Cast", [given], [result], f"{result}_cast", to=TensorProto.FLOAT)


def _add_(graph: GraphProto, name: str, value: np.ndarray) -> None:
    if all(tensor.name != name for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(value, name))
