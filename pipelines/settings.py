"""The sections of params.yaml that name a teacher and students."""

from __future__ import annotations

import re
from typing import Self

from pydantic import Field, field_validator, model_validator

from compress.errors import ParamsError
from compress.methods import CrossEntropy, WithoutTeacher, WithTeacher
from compress.models import ModelSource
from compress.settings import Fraction, NonNegativeInt, Settings
from compress.train import TrainSettings
from pipelines.layout import TEACHER

SLUG = re.compile(r"[a-z0-9_]+")


class TeacherSettings(Settings):
    """The big network: trained here, or loaded."""

    model: ModelSource
    """Its architecture, and the weights it starts from or is loaded with."""
    train: TrainSettings | None = None
    """How to train it; leave out to use the weights that `model` names as they are."""
    method: WithoutTeacher = CrossEntropy()
    """Loss it is trained with."""
    seed: NonNegativeInt = 0
    min_accuracy: Fraction = 0.0
    """Stop before any student starts if the teacher's validation accuracy is below this."""


class StudentSettings(Settings):
    """What all students have."""

    model: ModelSource
    train: TrainSettings = TrainSettings()
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    """One training run each; metrics are then a mean with its spread."""

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"every seed may appear once, got {list(seeds)}")
        return seeds


class DistilledStudent(StudentSettings):
    """A student that learns from the teacher."""

    method: WithTeacher


class TeacherFreeStudent(StudentSettings):
    """A student trained without the teacher; a new teacher does not retrain it."""

    method: WithoutTeacher


class StudentsSettings(Settings):
    """Named students to compare, one row each."""

    distilled: dict[str, DistilledStudent]
    """Rows that learn from the teacher; {} for none."""
    teacher_free: dict[str, TeacherFreeStudent]
    """Rows trained without it, the baselines among them; {} for none."""

    @model_validator(mode="after")
    def _names_are_usable(self) -> Self:
        names = [*self.distilled, *self.teacher_free]
        if not names:
            raise ValueError("no students; add a row under students.distilled or students.teacher_free")
        for name in names:
            if not SLUG.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a student; use lower-case letters, digits and _")
        for name in names:
            if name == TEACHER or names.count(name) > 1:
                raise ValueError(f"{name!r} is taken; every student needs a name of its own, and not {TEACHER!r}")
        return self

    def row(self, name: str) -> DistilledStudent | TeacherFreeStudent:
        """One student's settings.

        Raises:
            ParamsError: there is no such student.
        """
        rows = {**self.distilled, **self.teacher_free}
        if name not in rows:
            raise ParamsError(f"no student {name!r} in params.yaml; there are {', '.join(rows)}")
        return rows[name]
