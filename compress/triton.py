"""A Triton Inference Server model repository around an exported file, and the check that the two fit.

    <repository>/<name>/config.pbtxt   what the server must know
    <repository>/<name>/labels.txt     class names, one a line; the classification extension answers with them
    <repository>/<name>/1/model.onnx   a copy of the file

The configuration is protobuf text of the message ModelConfig (triton-inference-server/common, model_config.proto). The
fields used here are declared below with the types they have there, so that a wrong name or type is an error here and
not when a server starts; numbers do not occur in text, so they are not Triton's.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from compress.errors import ArtifactError
from compress.onnx_session import interface, open_session

if TYPE_CHECKING:
    from google.protobuf.message import Message

CONFIG, LABELS, MODEL, VERSION = "config.pbtxt", "labels.txt", "model.onnx", "1"
MAX_BATCH = 32
"""Images in one run; more of them wait for the next one."""
QUEUE_MICROSECONDS = 500
"""How long a request waits for company. On a processor that answers 32 images in 32 times the time of one it is of no
use; on a GPU it is."""
QUEUE_SIZE = 256
QUEUE_TIMEOUT_MICROSECONDS = 2_000_000
CURE = "package the model again"

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_DATA_TYPES: Final = ("TYPE_INVALID", "TYPE_UINT8", "TYPE_FP32")
_KINDS: Final = ("KIND_AUTO", "KIND_GPU", "KIND_CPU")
_ACTIONS: Final = ("REJECT", "DELAY")

_SCHEMA: Final[dict[str, dict[str, str]]] = {
    "ModelParameter": {"string_value": "string"},
    "ModelInput": {"name": "string", "data_type": "DataType", "dims": "*int64"},
    "ModelOutput": {"name": "string", "data_type": "DataType", "dims": "*int64", "label_filename": "string"},
    "ModelInstanceGroup": {"count": "int32", "kind": "Kind"},
    "ModelQueuePolicy": {
        "timeout_action": "TimeoutAction",
        "default_timeout_microseconds": "uint64",
        "max_queue_size": "uint32",
    },
    "ModelDynamicBatching": {"max_queue_delay_microseconds": "uint64", "default_queue_policy": "ModelQueuePolicy"},
    "ModelConfig": {
        "name": "string",
        "backend": "string",
        "max_batch_size": "int32",
        "input": "*ModelInput",
        "output": "*ModelOutput",
        "instance_group": "*ModelInstanceGroup",
        "dynamic_batching": "ModelDynamicBatching",
        "default_model_filename": "string",
        "parameters": "map",
    },
}
"""Message -> field -> type; a star says that it is repeated, `map` is one from string to ModelParameter."""


class Interface(NamedTuple):
    """What a configuration says of a file."""

    image_shape: tuple[int, ...]
    num_logits: int


def write_repository(folder: Path, name: str, model: Path, *, classes: Sequence[str], batching: bool) -> None:
    """Write the repository for one exported file and check it.

    `batching` lets the server join requests; without it every request is a run of one image.

    Raises:
        ArtifactError: the name or a class name cannot stand there, or the files do not fit together.
    """
    if not _NAME.fullmatch(name):
        raise ArtifactError(f"{name!r} cannot be a Triton model's name: use letters, digits, '_', '.' and '-'")
    broken = [label for label in classes if not label.strip() or len(label.splitlines()) != 1]
    if broken:
        raise ArtifactError(f"the class name {broken[0]!r} cannot stand on a line of {LABELS}; rename the class")
    place = folder / name
    (place / VERSION).mkdir(parents=True)
    shutil.copyfile(model, place / VERSION / MODEL)
    (place / LABELS).write_text("".join(f"{label}\n" for label in classes), encoding="utf-8")
    session = open_session(model, model.read_bytes(), threads=1, provider="CPUExecutionProvider")
    height, width, num_logits = interface(model, session)
    config = _config(name, Interface((height, width, 3), num_logits), batching=batching)
    (place / CONFIG).write_text(config, encoding="utf-8")
    check_repository(folder, name)


def _config(name: str, known: Interface, *, batching: bool) -> str:
    from google.protobuf import text_format

    config: Any = _messages()["ModelConfig"]()
    config.name = name
    config.backend = "onnxruntime"
    config.default_model_filename = MODEL
    config.max_batch_size = MAX_BATCH if batching else 1
    config.input.add(name="image", data_type=_DATA_TYPES.index("TYPE_UINT8"), dims=known.image_shape)
    config.output.add(
        name="logits", data_type=_DATA_TYPES.index("TYPE_FP32"), dims=[known.num_logits], label_filename=LABELS
    )
    # On whatever the server has: GPUs where there are some, else the processor.
    config.instance_group.add(count=1, kind=_KINDS.index("KIND_AUTO"))
    if batching:
        config.dynamic_batching.max_queue_delay_microseconds = QUEUE_MICROSECONDS
        policy = config.dynamic_batching.default_queue_policy
        policy.timeout_action = _ACTIONS.index("REJECT")
        policy.default_timeout_microseconds = QUEUE_TIMEOUT_MICROSECONDS
        policy.max_queue_size = QUEUE_SIZE
    config.parameters["intra_op_thread_count"].string_value = "1"
    return text_format.MessageToString(config)


def check_repository(folder: Path, name: str) -> None:
    """Hold the configuration of one model against its file: names, types, shapes, batch, labels.

    Raises:
        ArtifactError: a file is missing, the configuration cannot be read, or says something else than the file.
    """
    place = folder / name
    config = _read_config(place / CONFIG)
    path = place / VERSION / config.default_model_filename
    try:
        content = path.read_bytes()
        labels = (place / LABELS).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ArtifactError(f"{error.filename} cannot be read: {error.strerror}; {CURE}") from error
    session = open_session(path, content, threads=1, provider="CPUExecutionProvider")
    height, width, num_logits = interface(path, session)
    expected: dict[str, Any] = {
        "name": name,
        "backend": "onnxruntime",
        "input": [("image", "TYPE_UINT8", (height, width, 3))],
        "output": [("logits", "TYPE_FP32", (num_logits,))],
        "labels": [LABELS],
        "number of labels": num_logits,
    }
    given: dict[str, Any] = {
        "name": config.name,
        "backend": config.backend,
        "input": [_tensor(tensor) for tensor in config.input],
        "output": [_tensor(tensor) for tensor in config.output],
        "labels": [tensor.label_filename for tensor in config.output],
        "number of labels": len(labels),
    }
    wrong = [f"{key} {given[key]!r}, the file has {value!r}" for key, value in expected.items() if given[key] != value]
    if config.max_batch_size < 1:  # with 0 the first axis would have to stand in dims
        wrong.append(f"max_batch_size {config.max_batch_size}, must be 1 or more")
    if wrong:
        raise ArtifactError(f"{place / CONFIG} does not fit {path}: {'; '.join(wrong)}; {CURE}")


def _tensor(tensor: Any) -> tuple[str, str, tuple[int, ...]]:
    return tensor.name, _DATA_TYPES[tensor.data_type], tuple(tensor.dims)


def _read_config(path: Path) -> Any:
    from google.protobuf import text_format

    try:
        text = path.read_text(encoding="utf-8")
        return text_format.Parse(text, _messages()["ModelConfig"]())
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}; {CURE}") from error
    except (UnicodeDecodeError, text_format.ParseError) as error:
        raise ArtifactError(f"{path} is no Triton configuration: {error}; {CURE}") from error


@cache
def _messages() -> dict[str, type[Message]]:
    """Message classes of the declared fields."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="compress_triton.proto", package="compress_triton", syntax="proto3")
    for enum, values in (("DataType", _DATA_TYPES), ("Kind", _KINDS), ("TimeoutAction", _ACTIONS)):
        declared = file.enum_type.add(name=enum)
        for number, value in enumerate(values):
            declared.value.add(name=value, number=number)
    for message, fields in _SCHEMA.items():
        _declare(file.message_type.add(name=message), fields)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        message: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"compress_triton.{message}"))
        for message in _SCHEMA
    }


def _declare(message: Any, fields: dict[str, str]) -> None:
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field

    for number, (name, kind) in enumerate(fields.items(), start=1):
        is_repeated = kind == "map" or kind.startswith("*")
        field = message.field.add(
            name=name, number=number, label=Field.LABEL_REPEATED if is_repeated else Field.LABEL_OPTIONAL
        )
        kind = kind.removeprefix("*")
        if kind == "map":
            entry = message.nested_type.add(name="ParametersEntry")
            entry.options.map_entry = True
            entry.field.add(name="key", number=1, label=Field.LABEL_OPTIONAL, type=Field.TYPE_STRING)
            entry.field.add(
                name="value",
                number=2,
                label=Field.LABEL_OPTIONAL,
                type=Field.TYPE_MESSAGE,
                type_name=".compress_triton.ModelParameter",
            )
            field.type, field.type_name = Field.TYPE_MESSAGE, ".compress_triton.ModelConfig.ParametersEntry"
        elif kind in _SCHEMA:
            field.type, field.type_name = Field.TYPE_MESSAGE, f".compress_triton.{kind}"
        elif kind[0].isupper():
            field.type, field.type_name = Field.TYPE_ENUM, f".compress_triton.{kind}"
        else:
            field.type = getattr(Field, f"TYPE_{kind.upper()}")
