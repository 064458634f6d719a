"""Quantised layers as onnxruntime fuses them: QuantizeLinear and DequantizeLinear around every operator.

The placement is onnxruntime.quantization's; ranges, what stays in float and what is cleared up afterwards are ours.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from compress.export.exported import ExportedModel, consumers, drop_unused_constants_, entry_nodes, sort_nodes_
from compress.quantize.calibration import FloatRange
from compress.quantize.quiet import root_logger_untouched
from compress.quantize.source import layers

Types = Literal["u8s8", "s8s8", "u8u8"]

QUANTIZED_OPERATORS = (
    "Add", "AveragePool", "Clip", "Concat", "Conv", "Flatten", "Gemm", "GlobalAveragePool", "MatMul", "MaxPool", "Mul",
    "Pad", "Relu", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
"""Operators with an integer kernel. Softmax, norms and smooth activations lose accuracy and gain nothing."""


class Scheme(NamedTuple):
    """How values become integers."""

    types: Types
    """Activations, then weights."""
    per_channel: bool
    """A scale for every output channel of a weight, instead of one for all."""
    reduce_range: bool
    """Weights in 7 bits, so that no pair of products overflows 16 bits."""


def quantized_model(
    source: ExportedModel,
    scheme: Scheme,
    ranges: Mapping[str, FloatRange],
    *,
    excluded: Collection[str] = (),
    only: Collection[str] = (),
) -> ModelProto:
    """The source with integer layers, except those `excluded`; if `only` names some, just these nodes.

    The way from pixels to the first layer, products of two activations (attention) and the logits stay in float:
    logits in 8 bits would be one of 256 values.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    signed = {"u": QuantType.QUInt8, "s": QuantType.QInt8}
    with root_logger_untouched():
        quantizer = QDQQuantizer(
            source.copy(),
            scheme.per_channel,
            scheme.reduce_range,
            signed[scheme.types[2]],
            signed[scheme.types[0]],
            _tensors_data(ranges),
            list(only),
            [*excluded, *_always_float(source)],
            list(QUANTIZED_OPERATORS),
            # The CPU kernels take weights of one zero point only, so unsigned ones must be symmetric around 128.
            {"WeightSymmetric": True},
        )
        quantizer.quantize_model()
    model: ModelProto = quantizer.model.model
    _keep_logits_in_float_(model.graph)
    _keep_in_float_(model.graph, frozenset(excluded))
    _drop_zero_points_of_biases_(model.graph)
    drop_unused_constants_(model.graph)
    sort_nodes_(model.graph)
    return model


def _tensors_data(ranges: Mapping[str, FloatRange]) -> Any:
    """Ranges as onnxruntime takes them."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData

    data: dict[str, TensorData | tuple[object, ...]] = {
        name: TensorData(lowest=np.array(low, dtype=np.float32), highest=np.array(high, dtype=np.float32))
        for name, (low, high) in ranges.items()
    }
    return TensorsData(CalibrationMethod.MinMax, data)


def _always_float(source: ExportedModel) -> list[str]:
    graph = source.model.graph
    with_weights = {layer.name for layer in layers(graph)}
    products = [node.name for node in graph.node if node.op_type == "MatMul" and node.name not in with_weights]
    return [node.name for node in entry_nodes(graph)] + products


def _keep_logits_in_float_(graph: GraphProto) -> None:
    """Take away the rounding of the logits to 8 bits, if there is one."""
    producers = {node.output[0]: node for node in graph.node}
    (logits,) = graph.output
    dequantize = producers[logits.name]
    quantize = producers.get(dequantize.input[0]) if dequantize.op_type == "DequantizeLinear" else None
    if quantize is None or len(consumers(graph, quantize.output[0])) > 1:
        return
    for node in graph.node:
        for place, name in enumerate(node.output):
            if name == quantize.input[0]:
                node.output[place] = logits.name
    graph.node.remove(dequantize)
    graph.node.remove(quantize)
    # The layer before may have had other takers of its output: they take the logits, which are the same values.
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == quantize.input[0]:
                node.input[place] = logits.name


def _keep_in_float_(graph: GraphProto, excluded: frozenset[str]) -> None:
    """Give excluded layers between two quantised ones an input of their own, unpacked with a scale per channel.

    ONNX Runtime rounds the float weights of any layer between DequantizeLinear and QuantizeLinear to 8 bits when it
    loads a file, with one scale for the whole weight: an exclusion would make the layer worse. It does not where the
    input has a scale per channel; all of them equal, it is the same input.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    for layer in layers(graph):
        unpack = producers.get(layer.node.input[0])
        if layer.name not in excluded or unpack is None or unpack.op_type != "DequantizeLinear":
            continue
        shape = [layer.num_inputs]
        names = [f"{layer.name}.input_scale", f"{layer.name}.input_zero_point", f"{layer.name}.input"]
        for name, constant in zip(names, unpack.input[1:3], strict=False):
            graph.initializer.append(numpy_helper.from_array(np.broadcast_to(constants[constant], shape).copy(), name))
        graph.node.append(
            helper.make_node(
                "DequantizeLinear", [unpack.input[0], *names[:2]], [names[2]], f"{names[2]}_unpacked", axis=1
            )
        )
        layer.node.input[0] = names[2]


def _drop_zero_points_of_biases_(graph: GraphProto) -> None:
    """A bias is rounded to int32 around zero, which needs no array of zeros: 3 to 5 per cent of a small file."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        rounded = weights.get(node.input[0])
        if node.op_type == "DequantizeLinear" and rounded is not None and rounded.data_type == TensorProto.INT32:
            del node.input[2:]
