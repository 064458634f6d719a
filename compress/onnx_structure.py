"""What an ONNX model is made of, looked at before anything runs it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})
EXTERNAL = 1
"""`TensorProto.EXTERNAL`: the tensor's bytes lie in another file."""


def parts_from_elsewhere(model: ModelProto) -> list[str]:
    """What keeps a model from standing alone, in words; empty for a self-contained one.

    A tensor kept in another file can be made to read any file of the machine that loads it, an operator of another
    domain runs only where somebody installed it, and a function is a second way to say what a node does.
    """
    nodes = list(all_nodes(model.graph))
    external = {tensor.name or "unnamed" for tensor in _tensors(model) if tensor.data_location == EXTERNAL}
    foreign = {f"{node.domain}.{node.op_type}" for node in nodes if node.domain not in STANDARD_DOMAINS}
    functions = {f"{function.domain}.{function.name}" for function in model.functions}
    named = (("tensor in another file", external), ("operator outside ONNX", foreign), ("model function", functions))
    return [f"{kind}: {', '.join(sorted(names))}" for kind, names in named if names]


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Nodes of a graph and of the graphs inside its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in _graphs(attribute):
                yield from all_nodes(inner)


def taken_names(node: NodeProto) -> set[str]:
    """Names of the values that a node takes, itself or in a graph inside it."""
    inner = (each for attribute in node.attribute for graph in _graphs(attribute) for each in all_nodes(graph))
    return {name for each in (node, *inner) for name in each.input}


def _graphs(attribute: AttributeProto) -> list[GraphProto]:
    return [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor a model holds, wherever it may hide."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        yield attribute.t
        yield from attribute.tensors
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in _graphs(attribute):
            yield from _graph_tensors(graph)
