"""Other floating-point forms of an exported file: half precision inside, or a float entry in front.

There is no bfloat16 form: the ONNX standard has no bfloat16 convolution before opset 22, and ONNX Runtime's CPU
provider has none at all. Weights alone can be kept in bfloat16 (compress/quantize/weight_only.py).
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from compress.errors import ModelError
from compress.export.exported import (
    ExportedModel,
    consumers,
    drop_unused_constants_,
    entry_nodes,
    read_exported,
    sort_nodes_,
    write_exported,
)

FLOAT_ENTRY = "image: float32 RGB in [0, 1], batch x 3 x height x width; normalisation is inside"
LARGEST_FLOAT16 = 65504.0


def float16_model(source: ExportedModel) -> ModelProto:
    """The model with float16 weights and arithmetic, from uint8 images to float32 logits.

    Its entry stays in float32: pixels over 255 minus a mean lose bits in half precision that nothing brings back.

    Raises:
        ModelError: a weight is too large for float16.
    """
    _refuse_large_constants(source)
    with _import_path_kept():
        # Imported after onnxruntime.transformers, it needs the changed path; later it would not find its modules.
        import onnxruntime.quantization  # noqa: F401  # pyright: ignore[reportUnusedImport]
        from onnxruntime.transformers.float16 import convert_float_to_float16  # pyright: ignore[reportMissingImports]

    entry = [node.name for node in entry_nodes(source.model.graph)]
    model: ModelProto = convert_float_to_float16(source.copy(), keep_io_types=True, node_block_list=entry)
    _join_round_trips_(model.graph)
    sort_nodes_(model.graph)
    return model


def write_float_entry(source: Path, destination: Path) -> None:
    """Write the form that takes float32 images (B 3 H W) in [0, 1] instead of stored pixels.

    For converters to other formats, many of which know no uint8 input (ncnn, MNN, TensorRT's older parsers). The
    network's own normalisation stays inside. `load_predictor` refuses this form: it has another interface.

    Raises:
        ArtifactError: the source is missing or damaged.
        ModelError: its entry is not the one that `export_onnx` writes.
    """
    exported = read_exported(source)
    model = exported.copy()
    graph = model.graph
    removed = _pixel_nodes(exported)
    pixels = removed[-1].output[0]
    kept = [node for node in graph.node if node.output[0] not in {node.output[0] for node in removed}]
    _replace_input_(kept, pixels, "image")
    del graph.node[:]
    graph.node.extend(kept)
    height, width = (dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim[1:3])
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, height, width]))
    drop_unused_constants_(graph)
    write_exported(destination, model, made_of=exported, metadata={"entry": "float_nchw", "input": FLOAT_ENTRY})


def as_float_entry(images: np.ndarray) -> np.ndarray:
    """Stored pixels (B H W 3) as the float entry takes them."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)


def _pixel_nodes(source: ExportedModel) -> list[NodeProto]:
    """From uint8 images (B H W 3) to float in [0, 1], channels first: transpose, cast, divide."""
    graph = source.model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    found: list[NodeProto] = []
    name = graph.input[0].name
    while len(found) < 3:
        # Transformers also ask for the number of images, which both entries have in the first place.
        following = [node for node in consumers(graph, name) if not _counts_images(node)]
        if len(following) != 1:
            break
        found.append(following[0])
        name = following[0].output[0]
    operators = sorted(node.op_type for node in found)
    if operators == ["Cast", "Div", "Transpose"] and found[-1].op_type == "Div":
        divisor = weights.get(found[-1].input[1])
        if divisor is not None and float(numpy_helper.to_array(divisor)) == 255.0:
            return found
    raise ModelError(
        f"{source.path} does not begin with transpose, cast and division by 255 ({', '.join(operators)}); "
        "make the float entry of a file that export_onnx wrote"
    )


def _counts_images(node: NodeProto) -> bool:
    """Whether it takes only the first of a tensor's dimensions."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    return node.op_type == "Shape" and attributes.get("start", 0) == 0 and attributes.get("end") == 1


def _replace_input_(nodes: Iterable[NodeProto], name: str, replacement: str) -> None:
    for node in nodes:
        for place, value in enumerate(node.input):
            if value == name:
                node.input[place] = replacement


def _refuse_large_constants(source: ExportedModel) -> None:
    for tensor in source.model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            largest = float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))
            if not largest <= LARGEST_FLOAT16:
                raise ModelError(
                    f"{source.path}: {tensor.name} holds {largest:.4g}, float16 ends at {LARGEST_FLOAT16:.0f}; "
                    "keep float32 for this network"
                )


def _join_round_trips_(graph: GraphProto) -> None:
    """Remove casts to float16 that only lead back to float32.

    The converter puts both between every two nodes that stay in float32, which would round each step of the entry.
    """
    producers = {node.output[0]: node for node in graph.node}
    wide = {
        node.output[0]: producers[node.input[0]].input[0]
        for node in graph.node
        if _casts_to(node, TensorProto.FLOAT)
        and node.input[0] in producers
        and _casts_to(producers[node.input[0]], TensorProto.FLOAT16)
    }
    for narrow, original in wide.items():
        _replace_input_(graph.node, narrow, original)
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [node for node in graph.node if node.op_type != "Cast" or node.output[0] in used]
    used = {name for node in kept for name in node.input} | {value.name for value in graph.output}
    kept = [node for node in kept if node.op_type != "Cast" or node.output[0] in used]
    del graph.node[:]
    graph.node.extend(kept)


def _casts_to(node: NodeProto, data_type: int) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i == data_type for a in node.attribute)


@contextmanager
def _import_path_kept() -> Generator[None]:
    """Importing onnxruntime.transformers puts its own folder on the import path, with modules of common names."""
    path = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = path
