"""A network as one ONNX file that needs nothing beside it.

Input `image`: uint8 RGB pixels (batch, height, width, 3), any batch size; normalisation is inside.
Output `logits`: float32 (batch, classes). Class names and whatever else the caller knows stand in the metadata, each
value as JSON, beside the versions of the tools and what a runtime must know. Exporting the same network twice gives
the same bytes.
"""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import onnx
import torch
from pydantic import JsonValue
from torch import nn

from compress.errors import ArtifactError, ModelError
from compress.export.graph import IR_VERSION, check, rewrite_hard_sigmoid_, strip_
from compress.export.provenance import requirements, tool_versions
from compress.export.settings import ExportSettings, Opset
from compress.export.traceable import traceable
from compress.files import write_whole

NOISY = re.compile(r"(torch|onnxscript|onnx_ir|onnx|copyreg)(\.|$)")
"""Names of modules and loggers."""


def export_onnx(
    network: nn.Module,
    path: Path,
    *,
    image_size: tuple[int, int],
    settings: ExportSettings,
    metadata: Mapping[str, JsonValue],
) -> None:
    """Write a network (float32 images B 3 H W in [0, 1] to logits) to `path`, for images of (height, width).

    `metadata["classes"]` must list the class names in the order of the logits. The network is not changed.

    Raises:
        ModelError: the network cannot be exported.
        ArtifactError: the file cannot be written.
        ValueError: the class names are missing or are not as many as the logits.
    """
    classes = _class_names(metadata)
    _make_folder(path.parent)
    model = _traced(traceable(network), image_size, settings.opset)
    num_logits = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    if len(classes) != num_logits:
        raise ValueError(f"metadata['classes'] has {len(classes)} names, the network {num_logits} logits")
    strip_(model)
    rewrite_hard_sigmoid_(model.graph)
    model.ir_version = IR_VERSION[settings.opset]
    _describe_(model, metadata, settings)
    check(model, settings.opset)
    try:
        write_whole(path, model.SerializeToString(deterministic=True))
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror}; choose a writable folder") from error


def _traced(network: nn.Module, image_size: tuple[int, int], opset: Opset) -> onnx.ModelProto:
    # Two images: the tracer takes a size of 1 for a constant in some layers.
    images = torch.zeros(2, *image_size, 3, dtype=torch.uint8)
    try:
        with _without_the_exporters_noise():
            program = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                opset_version=opset,
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = (str(error.__cause__ or error).strip() or "no reason given").splitlines()[0].rstrip(".")
        raise ModelError(
            f"the network cannot be exported to ONNX: {reason}; use a network of standard layers whose forward pass "
            "does not branch on pixel values"
        ) from error
    assert program is not None
    return program.model_proto


@contextmanager
def _without_the_exporters_noise() -> Generator[None]:
    """Silence what the exporter says about itself; warnings of the network's own code still come through.

    When it fails it prints the graph, several times over, and logs tracebacks; its exception says the same.
    """
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if NOISY.match(name)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.filterwarnings("ignore", module=NOISY.pattern)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _class_names(metadata: Mapping[str, JsonValue]) -> list[JsonValue]:
    classes = metadata.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"metadata['classes'] must be the list of class names, got {classes!r}")
    return classes


def _describe_(model: onnx.ModelProto, metadata: Mapping[str, JsonValue], settings: ExportSettings) -> None:
    """Put the metadata into the model, each value as JSON under its key, and what only the exporter knows."""
    own: dict[str, JsonValue] = {"tools": tool_versions(), "requirements": requirements(settings.opset)}
    if settings.license is not None:
        own["license"] = settings.license
    facts = {**metadata, **own}
    for key in sorted(facts):
        value = json.dumps(facts[key], sort_keys=True, ensure_ascii=False, allow_nan=False)
        model.metadata_props.add(key=key, value=value)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"cannot make the folder {folder}: {error.strerror}; choose another") from error
