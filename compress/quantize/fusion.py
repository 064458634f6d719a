"""Whether quantised layers really run as integers: looked up in the graph that ONNX Runtime makes of a file."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort
from onnx import GraphProto

from compress.export.exported import ExportedModel, read_exported
from compress.quantize.source import LAYER_OPERATORS
from compress.settings import NonNegativeInt, Settings

INTEGER_OPERATORS = frozenset({"QLinearConv", "QGemm", "QLinearMatMul"})
DYNAMIC_OPERATORS = frozenset({"ConvInteger", "MatMulInteger"})
"""Integer in the file already; the runtime can only merge them with what comes next."""


class Fusion(Settings):
    """What became of the quantised layers of a file."""

    num_layers: NonNegativeInt
    """Convolutions and matrix products with 8-bit weights and activations."""
    num_integer: NonNegativeInt
    """Those that compute with integers; each of the others unpacks its operands to float32 first."""
    float_layers: tuple[str, ...]
    """The others, by the names of their nodes."""
    operators: dict[str, int]
    """Number of nodes by operator in the graph that runs."""


def fusion(path: Path) -> Fusion:
    """Load a file as ONNX Runtime would and see which layers it runs as integers. Costs one loading of the file.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    source = read_exported(path)
    optimised = _optimised(source)
    quantized = _quantized_layers(source.model.graph)
    integer = {node.name for node in optimised.node if node.op_type in INTEGER_OPERATORS}
    num_dynamic = sum(node.op_type in DYNAMIC_OPERATORS for node in source.model.graph.node)
    float_layers = tuple(name for name in quantized if name not in integer)
    return Fusion(
        num_layers=len(quantized) + num_dynamic,
        num_integer=len(quantized) - len(float_layers) + num_dynamic,
        float_layers=float_layers,
        operators=dict(sorted(Counter(node.op_type for node in optimised.node).items())),
    )


def integer_layers(source: ExportedModel) -> frozenset[str]:
    """Names of the file's quantised layers that run as integers, those of dynamic forms included."""
    fused = {node.name for node in _optimised(source).node if node.op_type in INTEGER_OPERATORS}
    integer = fused.intersection(_quantized_layers(source.model.graph))
    dynamic = {node.name for node in source.model.graph.node if node.op_type in DYNAMIC_OPERATORS}
    return frozenset(integer | dynamic)


def _quantized_layers(graph: GraphProto) -> list[str]:
    """Layers whose input and constant weight are both unpacked from 8 bits, by name."""
    constants = {tensor.name for tensor in graph.initializer}
    unpacked = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    return [
        node.name
        for node in graph.node
        if node.op_type in LAYER_OPERATORS and node.input[0] in unpacked and unpacked.get(node.input[1]) in constants
    ]


def _optimised(source: ExportedModel) -> GraphProto:
    """The graph after fusion, without the change of memory layout that comes after it and renames nodes."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(source.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(path).graph
