"""The exported graph, put in order: nothing of the machine in it, nothing a runtime misreads, nothing unchecked."""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from compress.errors import ModelError
from compress.onnx_structure import all_nodes, parts_from_elsewhere, taken_names

MIN_ONNXRUNTIME: Final = "1.24.4"
"""The oldest ONNX Runtime that exported files are tested in; earlier ones read tensors of files outside a model's
folder. By their opset and IR version alone they would load in 1.17 (opset 20) and 1.14 (opset 18)."""

IR_VERSION: Final = {18: 8, 19: 9, 20: 9}
"""File format version per opset: the oldest that holds it. Exporters write 10, which ONNX Runtime 1.17 refuses."""

MAX_BYTES: Final = 2**31 - 1
"""One protobuf message holds no more."""


def strip_(model: ModelProto) -> None:
    """Remove what only says where and how the file was made; the exporter notes stack traces with absolute paths."""
    del model.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    # The part after "+" names a build of torch (+cpu, +cu130), which does not change what is computed.
    model.producer_version = model.producer_version.partition("+")[0]
    graph = model.graph
    remove_dead_(graph)
    del graph.metadata_props[:]
    for item in (*all_nodes(graph), *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    # The types of weights stand in the weights; said twice they contradict a quantiser that replaces them.
    made = {name for node in graph.node for name in node.output}
    kept = [value for value in graph.value_info if value.name in made]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def remove_dead_(graph: GraphProto) -> None:
    """Remove nodes that nothing takes from, and weights that no node takes."""
    needed = {value.name for value in graph.output}
    nodes: list[NodeProto] = []
    for node in reversed(graph.node):  # in order, so every consumer was seen before
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(taken_names(node))
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:]
    graph.node.extend(reversed(nodes))
    del graph.initializer[:]
    graph.initializer.extend(weights)


def unfolded_normalisations(graph: GraphProto) -> list[str]:
    """Names of batch normalisations that a convolution or product directly before them could hold."""
    producers = {node.output[0]: node for node in graph.node}
    num_uses = Counter(name for node in graph.node for name in node.input)
    return [
        node.name
        for node in graph.node
        if node.op_type == "BatchNormalization"
        and num_uses[node.input[0]] == 1
        and node.input[0] in producers
        and producers[node.input[0]].op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
    ]


def rewrite_hard_sigmoid_(graph: GraphProto) -> None:
    """Say HardSigmoid as multiply, add and clip.

    OpenCV 4.12 and 5.0 take x * HardSigmoid(m) for HardSwish(m) even where x is not m, so every squeeze-excite block
    with a hard sigmoid would silently give garbage there.
    """
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "HardSigmoid":
            nodes.extend(_hard_sigmoid(graph, node))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _hard_sigmoid(graph: GraphProto, node: NodeProto) -> list[NodeProto]:
    attributes = {attribute.name: attribute.f for attribute in node.attribute}
    output = node.output[0]
    constants = {
        "alpha": attributes.get("alpha", 0.2),  # defaults of the ONNX operator
        "beta": attributes.get("beta", 0.5),
        "low": 0.0,
        "high": 1.0,
    }
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=np.float32), f"{output}.{name}"))
    return [
        helper.make_node("Mul", [node.input[0], f"{output}.alpha"], [f"{output}.scaled"], f"{node.name}_scale"),
        helper.make_node("Add", [f"{output}.scaled", f"{output}.beta"], [f"{output}.shifted"], f"{node.name}_shift"),
        helper.make_node(
            "Clip", [f"{output}.shifted", f"{output}.low", f"{output}.high"], [output], f"{node.name}_clip"
        ),
    ]


def check(model: ModelProto, opset: int) -> None:
    """Hold a model to the contract of exported files.

    Raises:
        ModelError: it is too large for one file, the exporter could not say the network in standard operators, or the
            network works for one batch size only.
    """
    size = model.ByteSize()
    if size > MAX_BYTES:
        raise ModelError(
            f"the network is too large for one ONNX file: {size} bytes, at most {MAX_BYTES}; use a smaller one"
        )
    imported = {entry.domain: entry.version for entry in model.opset_import}
    elsewhere = parts_from_elsewhere(model)
    if elsewhere or imported != {"": opset}:
        found = "; ".join(elsewhere) or f"operator sets {imported}"
        raise ModelError(
            f"the network cannot be said in the operators of ONNX opset {opset} ({found}); "
            "set export.opset to 20, or use a network without the layers named"
        )
    batches = [value.type.tensor_type.shape.dim[0].dim_param for value in (*model.graph.input, *model.graph.output)]
    if batches != ["batch", "batch"]:
        raise ModelError("the network answers batches of one size only; use one whose forward pass takes any batch")
    assert model.ir_version == IR_VERSION[opset], "the caller sets it"
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
