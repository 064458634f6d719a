"""What an 8-bit file would answer on an x86 processor without VNNI, computed on any processor.

The same file is another model there: integer sums overflow, and accuracies of 70 per cent become 63 (Intel's list of
validated models has ResNet-50 at 74.8 on one processor and 69.0 on another). Nothing in the file shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from compress.errors import ModelError
from compress.export.exported import ExportedModel, drop_unused_constants_, read_exported, sort_nodes_, write_exported
from compress.quantize.fusion import integer_layers
from compress.quantize.overflow import (
    GraphPart,
    Pairs,
    Window,
    lost_by_convolution,
    lost_by_product,
    overflowing_pairs,
)
from compress.settings import Fraction, NonNegativeFloat, NonNegativeInt, Settings


class Saturation(Settings):
    """What the file loses on an x86 processor without VNNI."""

    num_layers: NonNegativeInt
    """Layers that run as integers."""
    num_layers_at_risk: NonNegativeInt
    """Those with weights that can overflow there."""
    accuracy_validation: Fraction
    """Top-1 there."""
    drop: float
    """Accuracy in float32 minus that."""
    agreement: Fraction
    """Share of images answered as with VNNI."""
    logit_error: NonNegativeFloat = 0.0
    """Largest difference to a logit with VNNI, as a fraction of the largest logit."""


class Simulation(NamedTuple):
    """A file that computes everywhere what another computes without VNNI."""

    num_layers: int
    num_layers_at_risk: int


def write_without_vnni(source: Path, destination: Path) -> Simulation:
    """Write a file whose answers are those that `source` gives on an x86 processor without VNNI.

    It computes the sums in float32 and subtracts what the overflowing pairs lose, so it is slow, and exact but for
    results that lie between two of 256 levels to within float32's rounding.

    Raises:
        ArtifactError: the source is missing or damaged.
        ModelError: it has a convolution with automatic padding, which our exporter never writes.
    """
    exported = read_exported(source)
    integer = integer_layers(exported)
    model = exported.copy()
    graph = _Graph(exported)
    num_at_risk = 0
    for node in model.graph.node:
        part = graph.correct_(node) if node.name in integer else None
        if part is not None:
            num_at_risk += 1
            model.graph.node.extend(part.nodes)
            model.graph.initializer.extend(part.constants)
    used = {name for node in model.graph.node for name in node.input} | {"logits"}
    kept = [node for node in model.graph.node if not used.isdisjoint(node.output)]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    drop_unused_constants_(model.graph)
    sort_nodes_(model.graph)
    write_exported(destination, model, made_of=exported, metadata={"simulates": "x86 without VNNI"})
    return Simulation(len(integer), num_at_risk)


class _Stored(NamedTuple):
    """A tensor in 8 bits."""

    name: str
    scale: float
    zero_point: int
    is_signed: bool


class _Graph:
    """A quantised graph, looked up by name."""

    def __init__(self, source: ExportedModel) -> None:
        graph = onnx.shape_inference.infer_shapes(source.model, data_prop=True).graph
        self._constants: Mapping[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self._producers = {name: node for node in graph.node for name in node.output}
        self._shapes = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*graph.value_info, *graph.output, *graph.input)
        }

    def correct_(self, node: NodeProto) -> GraphPart | None:
        """Make an integer layer overflow, by nodes of which the last gives what the layer gave; None if it cannot."""
        if node.op_type == "MatMulInteger":
            return self._dynamic_(node)
        weight, scale = self._weight(node.input[1])
        if weight.dtype != np.int8 or (node.op_type == "Conv" and _is_depthwise(node, weight)):
            return None
        by_output = _by_output(node, weight)
        pairs = overflowing_pairs(by_output)
        if len(pairs.output) == 0:
            return None
        part = GraphPart(f"{node.name}.overflow")
        stored = self._stored(node.input[0])
        # A weight in float keeps the runtime from making this layer an integer one again.
        shape = [-1 if dim == _output_axis(node) else 1 for dim in range(weight.ndim)]
        node.input[1] = part.constant(weight.astype(np.float32) * scale.reshape(shape))
        lost_scale = np.broadcast_to(scale * np.float32(stored.scale), (len(by_output),)).astype(np.float32)
        if node.op_type == "Conv":
            lost = self._lost_by_convolution(part, node, stored, pairs=pairs, scale=lost_scale)
        else:
            lost = lost_by_product(part, _unsigned(part, stored), pairs, lost_scale)
        output = node.output[0]
        node.output[0] = f"{output}.without_overflow"
        part.add("Sub", node.output[0], lost, output=output)
        return part

    def _lost_by_convolution(
        self, part: GraphPart, node: NodeProto, stored: _Stored, *, pairs: Pairs, scale: np.ndarray
    ) -> str:
        window = _window(node, self._shapes[node.output[0]][2:])
        top, left, bottom, right = window.pads
        pads = part.constant(np.array([0, 0, top, left, 0, 0, bottom, right], dtype=np.int64))
        padding = part.number(stored.zero_point + (128 if stored.is_signed else 0))
        padded = part.add("Pad", _unsigned(part, stored), pads, padding)
        num_inputs = self._shapes[node.input[0]][1] // window.group
        return lost_by_convolution(part, padded, pairs, scale, window=window, num_inputs=num_inputs)

    def _dynamic_(self, node: NodeProto) -> GraphPart | None:
        """A product of integers whose activations were rounded just before; its result is an integer too."""
        weight = numpy_helper.to_array(self._constants[node.input[1]])
        pairs = overflowing_pairs(weight.T) if weight.dtype == np.int8 else overflowing_pairs(np.zeros((1, 2), np.int8))
        if len(pairs.output) == 0:
            return None
        part = GraphPart(f"{node.name}.overflow")
        stored = part.add("Cast", node.input[0], to=TensorProto.FLOAT)
        zero_point = part.add("Cast", node.input[2], to=TensorProto.FLOAT)
        exact = part.add("MatMul", part.add("Sub", stored, zero_point), part.constant(weight.astype(np.float32)))
        lost = lost_by_product(part, stored, pairs, np.ones(weight.shape[1], dtype=np.float32))
        output = node.output[0]
        node.output[0] = f"{output}.without_overflow"
        part.add("Cast", part.add("Sub", exact, lost), output=output, to=TensorProto.INT32)
        return part

    def _weight(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Integers and their scales, one or one per output channel."""
        unpack = self._producers[name]
        values, scale = (numpy_helper.to_array(self._constants[each]) for each in unpack.input[:2])
        return values, np.atleast_1d(scale)

    def _stored(self, name: str) -> _Stored:
        unpack = self._producers[name]
        scale, zero_point = (numpy_helper.to_array(self._constants[each]) for each in unpack.input[1:3])
        return _Stored(unpack.input[0], float(scale), int(zero_point), zero_point.dtype == np.int8)


def _unsigned(part: GraphPart, stored: _Stored) -> str:
    """A tensor's integers as float, signed ones 128 higher: the kernels have unsigned activations only."""
    values = part.add("Cast", stored.name, to=TensorProto.FLOAT)
    return part.add("Add", values, part.number(128)) if stored.is_signed else values


def _output_axis(node: NodeProto) -> int:
    return 0 if node.op_type == "Conv" or _attribute(node, "transB", 0) else 1


def _by_output(node: NodeProto, weight: np.ndarray) -> np.ndarray:
    """Weights as a matrix: output channels, then inputs in the order of the kernel."""
    if node.op_type == "Conv":
        return weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)
    return weight if _output_axis(node) == 0 else weight.T


def _is_depthwise(node: NodeProto, weight: np.ndarray) -> bool:
    return _attribute(node, "group", 1) == len(weight) and weight.shape[1] == 1


def _window(node: NodeProto, output_size: list[int]) -> Window:
    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    if values.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise ModelError(f"{node.name} pads by itself; use a file that export_onnx wrote")
    kernel, strides, dilations, pads = (
        tuple(values.get(name, default))
        for name, default in (
            ("kernel_shape", ()),
            ("strides", (1, 1)),
            ("dilations", (1, 1)),
            ("pads", (0, 0, 0, 0)),
        )
    )
    height, width = output_size
    return Window(_attribute(node, "group", 1), kernel, strides, dilations, pads, (height, width))


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)
