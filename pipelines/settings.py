"""The sections of params.yaml that name a teacher and students."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from compress.errors import ParamsError
from compress.methods import Composed, CrossEntropy, FeatureMethod, LogitMethod, SelfFeatureMethod, WithoutTeacher
from compress.models import ModelSource
from compress.settings import Fraction, NonNegativeInt, PositiveFloat, PositiveInt, Settings
from compress.training_state import TrainSettings
from pipelines.layout import SLUG, TEACHER


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


class QuantizationAwareSettings(Settings):
    """A short training after the student's own, with the rounding of its 8-bit file, by the same method.

    It goes on from the epoch that was best on validation. The file becomes one of the student's forms, `int8_qat`.
    """

    epochs: PositiveInt = 2
    learning_rate_factor: PositiveFloat = 0.1
    """Peak learning rate as a share of the student's; it falls to zero by half a cosine."""
    reduce_range: bool = False
    """Weights in 7 bits: exact on processors without VNNI, a little less accurate everywhere."""
    ranges: Literal["learned", "observed"] = "learned"
    """Whether the steps of activations go on learning or stay as observed before training."""
    num_calibration_images: PositiveInt = 256
    """Train images on which activations are observed first."""


class StudentSettings(Settings):
    """What all students have."""

    model: ModelSource
    train: TrainSettings = TrainSettings()
    quantization_aware: QuantizationAwareSettings | None = None
    """Train on with the rounding of an 8-bit file; for convolutional networks and methods on logits."""
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    """One training run each; metrics are then a mean with its spread."""

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"every seed may appear once, got {list(seeds)}")
        return seeds


class DistilledStudent(StudentSettings):
    """A student that learns from the teacher's logits."""

    method: LogitMethod


class ComposedStudent(StudentSettings):
    """A student that learns from the teacher by a method made of parts: features, or other methods."""

    method: Composed


class TeacherFreeStudent(StudentSettings):
    """A student trained without the teacher; a new teacher does not retrain it."""

    method: WithoutTeacher


class SelfTaughtStudent(StudentSettings):
    """A student that learns from another student, such as its own kind trained alone before."""

    teacher: str
    """Name of the row whose network teaches: the best epoch of its first seed."""
    method: LogitMethod


Student = DistilledStudent | ComposedStudent | TeacherFreeStudent | SelfTaughtStudent
GROUPS = ("distilled", "composed", "teacher_free", "self_taught")


class StudentsSettings(Settings):
    """Named students to compare, one row each, in groups that differ in what they depend on."""

    distilled: dict[str, DistilledStudent] = Field(default_factory=dict)
    """Rows that learn from the teacher's logits."""
    composed: dict[str, ComposedStudent] = Field(default_factory=dict)
    """Rows that learn from the teacher's features, or by several methods at once."""
    teacher_free: dict[str, TeacherFreeStudent] = Field(default_factory=dict)
    """Rows trained without a teacher, the baselines among them."""
    self_taught: dict[str, SelfTaughtStudent] = Field(default_factory=dict)
    """Rows that learn from another row."""

    @property
    def rows(self) -> dict[str, Student]:
        """All students by name."""
        return {**self.distilled, **self.composed, **self.teacher_free, **self.self_taught}

    @model_validator(mode="after")
    def _names_are_usable(self) -> Self:
        names = [*self.distilled, *self.composed, *self.teacher_free, *self.self_taught]
        if not names:
            raise ValueError(f"no students; add a row under students.{' or students.'.join(GROUPS)}")
        for name in names:
            if not SLUG.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a student; use lower-case letters, digits and _")
        for name in names:
            if name == TEACHER or names.count(name) > 1:
                raise ValueError(f"{name!r} is taken; every student needs a name of its own, and not {TEACHER!r}")
        return self

    @model_validator(mode="after")
    def _rounding_networks_learn_from_logits(self) -> Self:
        for name, student in self.rows.items():
            on_features = isinstance(student.method, FeatureMethod | SelfFeatureMethod)
            if student.quantization_aware is not None and on_features:
                raise ValueError(
                    f"{name}: quantization_aware trains by a method on logits, and {student.method.name} compares "
                    "features, which a network that rounds does not show; leave it out, and try export.forms"
                )
        return self

    @model_validator(mode="after")
    def _self_taught_students_have_teachers(self) -> Self:
        for name, student in self.self_taught.items():
            seen = [name]
            while student.teacher not in seen and student.teacher in self.self_taught:
                seen.append(student.teacher)
                student = self.self_taught[student.teacher]
            if student.teacher in seen:
                raise ValueError(f"self_taught.{name}: its teachers form a circle: {' -> '.join(seen)}")
            if student.teacher not in self.rows:
                raise ValueError(
                    f"self_taught.{seen[-1]}.teacher: no student {student.teacher!r}; there are "
                    f"{', '.join(row for row in self.rows if row != name)}"
                )
        return self

    def row(self, name: str) -> Student:
        """One student's settings.

        Raises:
            ParamsError: there is no such student.
        """
        if name not in self.rows:
            raise ParamsError(f"no student {name!r} in params.yaml; there are {', '.join(self.rows)}")
        return self.rows[name]
