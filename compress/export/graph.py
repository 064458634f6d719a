"""The exported graph, put in order: nothing of the machine in it, nothing a runtime misreads, nothing unchecked."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from compress.errors import ModelError
from compress.onnx_structure import parts_from_elsewhere

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
    del graph.metadata_props[:]
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    # The types of weights stand in the weights; said twice they contradict a quantiser that replaces them.
    weights = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.value_info if value.name not in weights]
    del graph.value_info[:]
    graph.value_info.extend(kept)


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
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
