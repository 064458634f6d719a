"""The page a person reads before using a shipped model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from pydantic import Field, JsonValue

from compress.load_record import LoadRecord, serving_section
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
    form: str = "float32"
    """Arithmetic of the file: float32, or the name of a quantiser."""
    form_notes: tuple[str, ...] = ()
    """What a form other than float32 loses, and where it answers something else; sentences."""
    num_parameters: NonNegativeInt | None = None
    flops: NonNegativeInt | None = None
    """Floating-point operations for one image."""
    accuracy_validation: Fraction | None = None
    """Top-1; the student was chosen by it. None, here and below, for what was not measured."""
    accuracy_test: Fraction | None = None
    """Top-1; nothing was chosen by it."""
    num_images_test: PositiveInt | None = None
    latency_ms: PositiveFloat | None = None
    """Median time to answer one image."""
    machine: str | None = None
    """Processor, threads and runtime version that the latency was measured with."""
    license: str | None = None
    """SPDX expression under which the file may be used; None where nobody said."""
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
    requirements: dict[str, str] = Field(default_factory=dict)
    """Versions of the Python packages that run it, by name."""
    serving: LoadRecord | None = None
    """A load test of it behind HTTP; None where nobody made one."""

    @property
    def learnt_from_teacher(self) -> bool:
        """Whether the teacher is among what it was made from; else it was only measured against it."""
        return self.teacher is not None and any(name.startswith("teacher") for name in self.lineage)


def model_card(
    facts: DeployFacts, *, classes: Sequence[str], image_size: tuple[int, int], size_bytes: int, sha256: str
) -> str:
    """The page as Markdown; what is not in `facts` was read from the file itself."""
    serving = () if facts.serving is None else ("## Serving", serving_section(facts.serving))
    sections = (
        f"# {facts.name}",
        _what_it_is(facts, classes),
        "## Intended use and limits",
        _limits(classes),
        "## What was measured",
        _measurements(facts, size_bytes),
        *serving,
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
        f"`{facts.method}`, in one ONNX file ({facts.form}) that runs in ONNX Runtime without anything beside it "
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
    teacher = facts.teacher
    rows: list[tuple[str, str | None, str]] = [
        (
            "top-1 accuracy on test",
            _format(facts.accuracy_test, ".2%"),
            f"{teacher.accuracy_test:.2%}" if teacher else "",
        ),
        ("top-1 accuracy on validation", _format(facts.accuracy_validation, ".2%"), ""),
        (
            "latency, one image, median, ms",
            _format(facts.latency_ms, ".3f"),
            f"{teacher.latency_ms:.3f}" if teacher else "",
        ),
        ("file size, MB (1e6 bytes)", f"{size_bytes / 1e6:.3f}", f"{teacher.size_bytes / 1e6:.3f}" if teacher else ""),
        ("parameters", _format(facts.num_parameters, ","), ""),
        ("floating-point operations, one image", _format(facts.flops, ","), ""),
        *((name, f"{value:.4g}", "") for name, value in facts.metrics.items()),
    ]
    head = ["| | this model | its teacher |", "|---|---:|---:|"] if teacher else ["| | this model |", "|---|---:|"]
    lines = [
        f"| {_cell(name)} | {_cell(value or 'not measured')} |" + (f" {beside} |" if teacher else "")
        for name, value, beside in rows
    ]
    return "\n\n".join(["\n".join([*head, *lines]), _how_measured(facts), *facts.form_notes])


def _how_measured(facts: DeployFacts) -> str:
    notes: list[str] = []
    if facts.accuracy_test is not None and facts.num_images_test is not None:
        standard_error = math.sqrt(facts.accuracy_test * (1 - facts.accuracy_test) / facts.num_images_test)
        notes.append(
            f"Test: {facts.num_images_test} images, standard error {standard_error:.2%}; nothing was chosen on them."
        )
    if facts.accuracy_validation is not None:
        notes.append("Validation: used to choose among students, so a little too good.")
    if facts.machine is not None:
        in_turns = "" if facts.teacher is None else "; student and teacher were measured in turns in one process"
        notes.append(f"Latency: {facts.machine}{in_turns}.")
    if facts.accuracy_test is not None:
        notes.append("All of it on the exported files.")
    return " ".join(notes) or "Nothing was measured on this file."


def _format(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)


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
        f"- licence: {facts.license or 'not stated'}",
        f"- data: {facts.data}",
        f"- teacher: {_teacher_in_words(facts)}",
        f"- SHA-256 of `model.onnx`: `{sha256}`",
        *(f"- SHA-256 of {_words(name)}: `{digest}`" for name, digest in sorted(facts.lineage.items())),
    ]
    return "\n".join(lines)


def _teacher_in_words(facts: DeployFacts) -> str:
    if facts.teacher is None:
        return "none"
    architecture = f"`{_compact(facts.teacher.architecture)}`"
    return architecture if facts.learnt_from_teacher else f"none; measured beside {architecture}"


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
