"""An exported file's bytes as an ONNX Runtime session. Needs nothing beside onnxruntime."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors  # pyright: ignore[reportAttributeAccessIssue]

from compress.errors import ArtifactError

CURE = "export it again"
LONGEST_SHOWN = 200
"""Characters of foreign text in a message."""

# ONNX Runtime's exceptions have no common ancestor.
REFUSALS = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


class Interface(NamedTuple):
    """What an exported file takes and gives."""

    height: int
    width: int
    num_logits: int


def read_file(path: Path, *, max_bytes: int | None = None) -> bytes:
    """The bytes of an exported file.

    Raises:
        ArtifactError: it is missing, cannot be read, or is larger than `max_bytes`.
    """
    try:
        size = path.stat().st_size
        if max_bytes is not None and size > max_bytes:
            raise ArtifactError(f"{path} is too large for an ONNX file: {size} bytes, at most {max_bytes}; {CURE}")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; run the export stage first") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}; make it a readable file") from error


def open_session(path: Path, content: bytes, *, threads: int, provider: str) -> ort.InferenceSession:
    """A session on the bytes that were read from `path`; `threads` compute inside one call.

    Raises:
        ArtifactError: ONNX Runtime refuses them.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that wait by spinning slow down every other session of the process, and what else the machine does.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A model made of bytes may otherwise take tensors from files of the working directory. No file lies below a file.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.absolute()))
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(content, options, providers=[provider])
        # ONNX Runtime decodes names and metadata when they are asked for, and so finds out late that they are no text.
        _ = _values(session.get_inputs()), _values(session.get_outputs()), session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is damaged: its names or metadata are no text; {CURE}") from error
    except REFUSALS as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(f"{path} is damaged: ONNX Runtime refuses it ({reason}); {CURE}") from error
    return session


def interface(path: Path, session: ort.InferenceSession) -> Interface:
    """What a session takes and gives.

    Raises:
        ArtifactError: it is not what exported files take and give.
    """
    inputs, outputs = _values(session.get_inputs()), _values(session.get_outputs())
    match inputs, outputs:
        case (
            [("image", "tensor(uint8)", [str(), int(height), int(width), 3])],
            [("logits", "tensor(float)", [_, int(num_logits)])],
        ):
            return Interface(height, width, num_logits)
        case _:
            raise ArtifactError(
                f"{path} takes {inputs} and gives {outputs}; expected uint8 'image' (batch, height, width, 3) "
                f"and float 'logits' (batch, classes); {CURE}"
            )


def read_metadata(session: ort.InferenceSession) -> dict[str, Any]:
    """What the exporter wrote, parsed; text that is no JSON (quantisers leave some) stays text."""
    return {key: _parsed(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}


def class_names(path: Path, metadata: dict[str, Any], num_logits: int) -> tuple[str, ...]:
    """Names in the order of the logits.

    Raises:
        ArtifactError: there are not as many as logits.
    """
    names = metadata.get("classes")
    if not isinstance(names, list) or len(names) != num_logits:
        shown = repr(names)[:LONGEST_SHOWN]
        raise ArtifactError(f"{path} has {num_logits} logits, and its metadata has the classes {shown}; {CURE}")
    return tuple(str(name) for name in names)


def _values(described: Sequence[Any]) -> list[tuple[str, str, list[Any]]]:
    return [(value.name, value.type, value.shape) for value in described]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
