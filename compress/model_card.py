"""The page a person reads before using a shipped model."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence

from pydantic import Field, JsonValue

from compress.settings import Fraction, NonNegativeInt, PositiveFloat, PositiveInt, Settings

MAX_CLASSES_LISTED = 20


class TeacherFacts(Settings):
    """The big network that the student is measured against."""

    architecture: dict[str, JsonValue]
    """Settings of its model."""
    accuracy_test: Fraction
    """Top-1, of its own exported file."""
    latency_ms: PositiveFloat
    """Median time to answer one image, measured in the same run as the student's."""
    size_bytes: PositiveInt
    """Of its own exported file."""


class DeployFacts(Settings):
    """What is known about a model that ships and cannot be read from its file."""

    name: str
    """The student's name in params.yaml."""
    reason: str
    """Why it was chosen."""
    architecture: dict[str, JsonValue]
    """Settings of its model."""
    method: str
    """How it was trained, by the method's name."""
    num_parameters: NonNegativeInt
    flops: NonNegativeInt
    """Floating-point operations for one image."""
    accuracy_validation: Fraction
    """Top-1; the student was chosen by it."""
    accuracy_test: Fraction
    """Top-1; nothing was chosen by it."""
    num_images_test: PositiveInt
    latency_ms: PositiveFloat
    """Median time to answer one image."""
    machine: str
    """Processor, threads and runtime version that the latency was measured with."""
    data: str
    """What it was trained and measured on, in words."""
    preprocessing: dict[str, JsonValue]
    """How a picture becomes the pixels the file takes."""
    teacher: TeacherFacts | None = None
    """None where there is no teacher."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Further measurements by name, units in the names; shown as they are."""
    lineage: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of what it was made from, by name."""


def model_card(
    facts: DeployFacts, *, classes: Sequence[str], image_size: tuple[int, int], size_bytes: int, sha256: str
) -> str:
    """The page as Markdown; what is not in `facts` was read from the file itself."""
    sections = (
        f"# {facts.name}",
        _what_it_is(facts, classes),
        "## Intended use and limits",
        _limits(classes),
        "## What was measured",
        _measurements(facts, size_bytes),
        "## Images",
        _images(facts, image_size),
        "## Classes",
        _class_list(classes),
        "## Where it comes from",
        _origin(facts, sha256),
    )
    return "\n\n".join(sections) + "\n"


def _what_it_is(facts: DeployFacts, classes: Sequence[str]) -> str:
    return (
        f"An image classifier with {len(classes)} classes: `{_compact(facts.architecture)}`, trained with "
        f"`{facts.method}`, in one ONNX file that runs in ONNX Runtime without anything beside it "
        f"(`python predict.py`). Chosen because: {facts.reason}."
    )


def _limits(classes: Sequence[str]) -> str:
    return (
        f"For pictures like those it was trained on (see below). It always answers with one of its {len(classes)} "
        "classes, whatever the picture shows, and its scores are only as calibrated as the table says. Accuracy on "
        "other cameras, places or times is unknown: measure it on pictures of your own before relying on it. "
        "Fairness, robustness to manipulated pictures and use in safety-critical decisions were not examined."
    )


def _measurements(facts: DeployFacts, size_bytes: int) -> str:
    accuracy = facts.accuracy_test
    standard_error = math.sqrt(accuracy * (1 - accuracy) / facts.num_images_test)
    rows = [
        ("top-1 accuracy on test", f"{accuracy:.2%}"),
        ("top-1 accuracy on validation", f"{facts.accuracy_validation:.2%}"),
        ("latency, one image, median, ms", f"{facts.latency_ms:.3f}"),
        ("file size, MB (1e6 bytes)", f"{size_bytes / 1e6:.3f}"),
        ("parameters", f"{facts.num_parameters:,}"),
        ("floating-point operations, one image", f"{facts.flops:,}"),
        *((name, f"{value:.4g}") for name, value in facts.metrics.items()),
    ]
    if facts.teacher is None:
        lines = ["| | this model |", "|---|---:|"]
        lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows]
    else:
        beside = (
            f"{facts.teacher.accuracy_test:.2%}",
            "",
            f"{facts.teacher.latency_ms:.3f}",
            f"{facts.teacher.size_bytes / 1e6:.3f}",
        )
        lines = ["| | this model | its teacher |", "|---|---:|---:|"]
        lines += [
            f"| {_cell(name)} | {_cell(value)} | {other} |"
            for (name, value), other in itertools.zip_longest(rows, beside, fillvalue="")
        ]
    note = (
        f"Test: {facts.num_images_test} images, standard error {standard_error:.2%}; nothing was chosen on them. "
        f"Validation: used to choose among students, so a little too good. Latency: {facts.machine}"
        + ("" if facts.teacher is None else "; student and teacher were measured in turns in one process")
        + ". All of it on the exported files."
    )
    return "\n".join(lines) + f"\n\n{note}"


def _images(facts: DeployFacts, image_size: tuple[int, int]) -> str:
    height, width = image_size
    lines = [
        f"Input `image`: uint8 RGB pixels 0..255 of shape (batch, {height}, {width}, 3), any batch size. Hand them "
        "over as they are: the file scales and normalises by itself. Output `logits`: float32 "
        f"(batch, classes); a softmax makes scores of them. From a picture of any kind to these {height} x {width} "
        "pixels, as in training and measuring:",
        "",
        *(f"- {_words(name)}: {_value(value)}" for name, value in facts.preprocessing.items()),
    ]
    return "\n".join(lines)


def _class_list(classes: Sequence[str]) -> str:
    listed = ", ".join(f"`{_cell(name)}`" for name in classes[:MAX_CLASSES_LISTED])
    more = len(classes) - MAX_CLASSES_LISTED
    return f"{listed} and {more} more, all in `labels.json`" if more > 0 else listed


def _origin(facts: DeployFacts, sha256: str) -> str:
    lines = [
        f"- data: {facts.data}",
        f"- teacher: {'none' if facts.teacher is None else f'`{_compact(facts.teacher.architecture)}`'}",
        f"- SHA-256 of `model.onnx`: `{sha256}`",
        *(f"- SHA-256 of {_words(name)}: `{digest}`" for name, digest in sorted(facts.lineage.items())),
    ]
    return "\n".join(lines)


def _compact(architecture: dict[str, JsonValue]) -> str:
    return ", ".join(f"{key}={_value(value)}" for key, value in architecture.items())


def _words(name: str) -> str:
    return name.replace("_", " ")


def _value(value: JsonValue) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_words(key)} {_value(inner)}" for key, inner in value.items())
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def _cell(text: str) -> str:
    """Text that cannot leave its table cell or line."""
    return " ".join(text.replace("|", "\\|").split())
