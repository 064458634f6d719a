"""An exported file as a graph that other forms are made of, and the way such a form is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto
from pydantic import JsonValue

from compress.errors import ArtifactError, ModelError
from compress.export.graph import IR_VERSION, check, strip_
from compress.files import write_whole
from compress.onnx_session import read_file
from compress.onnx_structure import parts_from_elsewhere

CURE = "export it again"
ENTRY_OPERATORS = frozenset({"Add", "Cast", "Clip", "Div", "Mul", "Reshape", "Sub", "Transpose"})


@final
@dataclass(frozen=True, eq=False)
class ExportedModel:
    """A file that `export_onnx` wrote, or a form of one, read and checked."""

    path: Path
    model: ModelProto
    """Not to be changed: forms are made of copies."""
    sha256: str
    """Of the file."""

    @property
    def opset(self) -> int:
        """Version of its operators."""
        return self.model.opset_import[0].version

    @property
    def metadata(self) -> dict[str, str]:
        """What stands in the file, as text."""
        return {entry.key: entry.value for entry in self.model.metadata_props}

    def copy(self) -> ModelProto:
        """A model that may be changed."""
        copied = ModelProto()
        copied.CopyFrom(self.model)
        return copied


def read_exported(path: Path) -> ExportedModel:
    """Read a file with the interface of exported ones, in an opset that we export.

    Raises:
        ArtifactError: it is missing, damaged, not self-contained, or takes and gives something else.
        ModelError: its operators are of another version.
    """
    content = read_file(path)
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ArtifactError(f"{path} is damaged: no ONNX model ({error}); {CURE}") from error
    imported = {entry.domain: entry.version for entry in model.opset_import}
    elsewhere = parts_from_elsewhere(model)
    if elsewhere:
        raise ArtifactError(f"{path} does not stand alone ({'; '.join(elsewhere)}); {CURE} as one file")
    if set(imported) != {""} or imported[""] not in IR_VERSION:
        known = ", ".join(map(str, IR_VERSION))
        raise ModelError(
            f"{path} is written in operator sets {imported}; other forms are made of files in ONNX opset {known}: "
            "export it again with export.opset: 20"
        )
    _check_interface(path, model.graph)
    return ExportedModel(path, model, hashlib.sha256(content).hexdigest())


def write_exported(path: Path, model: ModelProto, *, made_of: ExportedModel, metadata: Mapping[str, JsonValue]) -> None:
    """Write a form of an exported model as one file, with all that its source knew and `metadata` in addition.

    The model is put in order in place. The same model gives the same bytes.

    Raises:
        ArtifactError: the file cannot be written.
        ModelError: it would not stand alone in the operators of its source's opset.
    """
    strip_(model)
    model.ir_version = IR_VERSION[made_of.opset]
    texts = made_of.metadata | {key: _as_json(value) for key, value in metadata.items()}
    for key in sorted(texts):
        model.metadata_props.add(key=key, value=texts[key])
    check(model, made_of.opset)
    try:
        write_whole(path, model.SerializeToString(deterministic=True))
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror}; choose a writable folder") from error


def entry_nodes(graph: GraphProto) -> list[NodeProto]:
    """The nodes between the stored pixels and the first layer: to float, to channels first, normalise."""
    constants = {tensor.name for tensor in graph.initializer}
    reached = {graph.input[0].name}
    found: list[NodeProto] = []
    for node in graph.node:
        is_fed_by_entry = all(name in reached or name in constants for name in node.input)
        if node.op_type in ENTRY_OPERATORS and is_fed_by_entry and not reached.isdisjoint(node.input):
            found.append(node)
            reached.update(node.output)
    return found


def consumers(graph: GraphProto, name: str) -> list[NodeProto]:
    """Nodes that take a tensor, in the order of the graph."""
    return [node for node in graph.node if name in node.input]


def drop_unused_constants_(graph: GraphProto) -> None:
    """Remove the constants that no node takes any more."""
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def sort_nodes_(graph: GraphProto) -> None:
    """Put every node behind those it takes from; converters append theirs at the end."""
    available = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {""}
    waiting = list(graph.node)
    ordered: list[NodeProto] = []
    while waiting:
        ready = [node for node in waiting if available.issuperset(node.input)]
        assert ready, "the graph has no order"
        ordered.extend(ready)
        available.update(name for node in ready for name in node.output)
        done = {id(node) for node in ready}
        waiting = [node for node in waiting if id(node) not in done]
    del graph.node[:]
    graph.node.extend(ordered)


def _as_json(value: JsonValue) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _check_interface(path: Path, graph: GraphProto) -> None:
    taken = [(value.name, *_type_and_shape(value)) for value in graph.input]
    given = [(value.name, *_type_and_shape(value)) for value in graph.output]
    match taken, given:
        case [("image", TensorProto.UINT8, [_, int(), int(), 3])], [("logits", TensorProto.FLOAT, [_, int()])]:
            return
        case _:
            raise ArtifactError(
                f"{path} takes {taken} and gives {given}; expected uint8 'image' (batch, height, width, 3) and "
                f"float 'logits' (batch, classes); {CURE}"
            )


def _type_and_shape(value: onnx.ValueInfoProto) -> tuple[int, list[int | str]]:
    tensor = value.type.tensor_type
    return tensor.elem_type, [dim.dim_value or dim.dim_param for dim in tensor.shape.dim]
