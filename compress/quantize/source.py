"""The float32 file that every other form is made of."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from onnx import GraphProto, NodeProto, TensorProto

from compress.errors import ModelError
from compress.export.exported import ExportedModel, read_exported

LAYER_OPERATORS = ("Conv", "Gemm", "MatMul")
REDUCED_TYPES: dict[int, str] = {
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
}


class Layer(NamedTuple):
    """A node that multiplies its input with constant weights."""

    node: NodeProto
    weight: TensorProto

    @property
    def name(self) -> str:
        """Of the node; what `excluded_nodes` speaks of."""
        return self.node.name

    @property
    def output_axis(self) -> int:
        """Axis of the weight that counts output channels."""
        transposed = any(attribute.name == "transB" and attribute.i for attribute in self.node.attribute)
        return 0 if self.node.op_type == "Conv" or transposed else 1

    @property
    def num_inputs(self) -> int:
        """Channels or features of what the layer takes."""
        group = next((attribute.i for attribute in self.node.attribute if attribute.name == "group"), 1)
        return self.weight.dims[1 - self.output_axis] * group


def read_float32(path: Path) -> ExportedModel:
    """Read a file that `export_onnx` wrote and that is still in float32.

    Raises:
        ArtifactError: it is missing, damaged or of another interface.
        ModelError: it is in reduced precision already, of a foreign opset, or its nodes have no names.
    """
    source = read_exported(path)
    graph = source.model.graph
    reduced = {REDUCED_TYPES[tensor.data_type] for tensor in graph.initializer if tensor.data_type in REDUCED_TYPES}
    if reduced or any(node.op_type == "QuantizeLinear" for node in graph.node):
        held = " and ".join(sorted(reduced)) or "quantised"
        raise ModelError(f"{path} holds {held} weights already; make every form of the float32 file")
    names = [node.name for node in graph.node]
    if "" in names or len(set(names)) < len(names):
        raise ModelError(f"{path} has nodes without a name of their own; use a file that export_onnx wrote")
    return source


def layers(graph: GraphProto) -> list[Layer]:
    """Convolutions and matrix products with constant weights, in the order of the graph."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    return [
        Layer(node, constants[node.input[1]])
        for node in graph.node
        if node.op_type in LAYER_OPERATORS and node.input[1] in constants
    ]


def check_excluded(source: ExportedModel, excluded: tuple[str, ...]) -> None:
    """Refuse names that no layer has: an exclusion that excludes nothing is a mistake.

    Raises:
        ModelError: naming those the file has.
    """
    known = [layer.name for layer in layers(source.model.graph)]
    unknown = [name for name in excluded if name not in known]
    if unknown:
        raise ModelError(
            f"excluded_nodes: {source.path} has no layer {', '.join(unknown)}; its layers are {', '.join(known)}"
        )
