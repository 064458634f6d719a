"""Files of loss vectors, format `kd-loss-vectors/1`: inputs, and what the authors' own code returned for them.

`inputs` and `extra` hold numbers under names, `cases` the values and gradients of one function each, `extreme_cases`
60-digit evaluations of the formula at logits where that code may overflow, `bonus` instances of feature losses.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator
from torch import Tensor

from compress.errors import ArtifactError

FORMAT = "kd-loss-vectors/1"

Rows = list[list[float]]


class Record(BaseModel):
    """A part of the file; what it says besides is for people."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Inputs(Record):
    """One batch."""

    student_logits: Rows
    teacher_logits: Rows
    target: list[int]
    """Class numbers, counted from 0."""
    soft_target: Rows | None = None
    """Each row's share of every class, for mixed labels."""

    @model_validator(mode="after")
    def _shapes_agree(self) -> Inputs:
        num_classes = len(self.student_logits[0]) if self.student_logits else 0
        if num_classes < 2:
            raise ValueError("a batch needs at least one row of at least two logits")
        for rows in (self.student_logits, self.teacher_logits, self.soft_target):
            if rows is not None and [len(row) for row in rows] != [num_classes] * len(self.target):
                raise ValueError(f"expected {len(self.target)} rows of {num_classes} numbers")
        if not all(0 <= label < num_classes for label in self.target):
            raise ValueError(f"a target is not among the {num_classes} classes")
        return self


class Layers(Record):
    """The linear layer that USKD's weak branch trains, and its input."""

    feat: Rows
    fc_weight: Rows
    fc_bias: list[float]

    @model_validator(mode="after")
    def _shapes_agree(self) -> Layers:
        widths = {len(row) for row in (*self.feat, *self.fc_weight)}
        if len(widths) != 1 or len(self.fc_weight) != len(self.fc_bias):
            raise ValueError("expected rows of one width, and as many weights as biases")
        return self


class Loop(Record):
    """What the authors' training loop makes of the value."""

    expression: str
    """In terms of CE and loss."""
    ce: float
    total: float


class Case(Record):
    """What one function of the authors returned for one input."""

    id: str
    method: str
    variant: str
    input: str
    hyper: dict[str, JsonValue]
    dtype: str = "float64"
    loss: float
    grad: Rows | None = None
    """With respect to the student's logits."""
    grad_l2: float
    grad_abs_sum: float
    components: dict[str, float | list[float]] = Field(default_factory=dict)
    official_loop: Loop | None = None
    flag: str | None = None


class ExtremeCase(Record):
    """The exact value of one formula at extreme logits."""

    id: str
    method: str
    variant: str
    input: str
    hyper: dict[str, JsonValue]
    stable_value_mpmath: float


class VectorFile(BaseModel):
    """All of it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    format: str
    inputs: dict[str, Inputs]
    extra: dict[str, Layers] = Field(default_factory=dict)
    cases: list[Case]
    extreme_cases: list[ExtremeCase] = Field(default_factory=list)
    bonus: dict[str, JsonValue] = Field(default_factory=dict)

    @field_validator("format")
    @classmethod
    def _known(cls, format: str) -> str:
        if format != FORMAT:
            raise ValueError(f"expected {FORMAT!r}, got {format!r}")
        return format

    @model_validator(mode="after")
    def _cases_are_sound(self) -> VectorFile:
        cases = [*self.cases, *self.extreme_cases]
        if not cases and not self.bonus:
            raise ValueError("holds no cases")
        for case in cases:
            if case.input not in self.inputs:
                raise ValueError(f"case {case.id!r} is on input {case.input!r}, which is not there")
        ((most_common, count),) = Counter(case.id for case in cases).most_common(1) or [("", 0)]
        if count > 1:
            raise ValueError(f"the id {most_common!r} stands for {count} cases")
        return self

    @property
    def unknown_sections(self) -> list[str]:
        """Further lists of cases, which this version of the format does not know."""
        return [name for name in self.model_extra or {} if name.endswith("cases")]


def read_vector_file(path: Path) -> VectorFile:
    """Read and examine a file of vectors.

    Raises:
        ArtifactError: it cannot be read, or is no such file.
    """
    try:
        return VectorFile.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ArtifactError(f"{path} is no file of loss vectors: {place}: {message}".replace(": :", ":")) from error
    except ValueError as error:  # neither JSON nor text
        raise ArtifactError(f"{path} is no file of loss vectors: {error}") from error


def as_tensor(values: Rows | list[float], dtype: torch.dtype = torch.float64) -> Tensor:
    """Rounded once, from float64."""
    return torch.tensor(values, dtype=torch.float64).to(dtype)
