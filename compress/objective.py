"""A method bound to what it learns from, so that the training loop need not know which kind of method it has.

The student's forward pass runs under autocast; the loss outside of it, in float32 at least.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, final

import torch
from torch import nn

from compress.data.mixing import Mixing
from compress.data.prepared import PreparedSplit
from compress.device import autocast
from compress.errors import ParamsError
from compress.methods import FeatureMethod, Method, SelfFeatureMethod, TeacherFreeMethod, TeacherMethod
from compress.methods.base import Alone, FeatureLoss, Pair, Samples, SelfFeatureLoss, shapes_of
from compress.models import Network, probe
from compress.resident_teacher import Places, ResidentTeacher
from compress.teacher_logits import OnlineTeacher, StoredTeacher, TeacherAnswers
from compress.tensors import to_device
from compress.types import Answer, FloatImages, IndexArray, Labels, Logits, LossTerms, Scalar


class Taught(NamedTuple):
    """The teacher's part of a step as tensors: a step that was recorded reads nothing else."""

    logits: Logits
    factor: Scalar
    """Of the soft term, in this epoch."""


class StepInput(NamedTuple):
    """One batch on the training device; indices and slots stay on the host."""

    images: FloatImages
    labels: Labels
    indices: IndexArray
    slots: IndexArray
    epoch: int
    """Counted from 1."""
    whole: IndexArray
    """Indices of the whole batch. Of several processes each has a part of it; one process has all of it."""
    places: Places | None = None
    """Where indices and slots are on the training device already."""
    taught: Taught | None = None
    """What the teacher says, where it was asked beforehand."""

    @property
    def samples(self) -> Samples:
        """What a loss with a memory is told about the batch."""
        if self.places is not None and len(self.places.indices) == len(self.indices):  # not of one rank's part only
            return Samples(self.labels, self.places.indices, self.epoch)
        return Samples(self.labels, to_device(torch.from_numpy(self.indices), self.images.device), self.epoch)


class Heard(NamedTuple):
    """What student and teacher say of a batch; a method that compares features hears those too."""

    student: torch.Tensor | Answer
    teacher: torch.Tensor | Answer | None = None


class Objective(nn.Module, ABC):
    """The loss of one student. Its parameters are trained and its buffers kept with the student's.

    Asking is apart from comparing, because several processes ask about a part of the batch each and compare all of it.
    """

    def forward(self, network: nn.Module, batch: StepInput, dtype: torch.dtype) -> LossTerms:
        """Run the student on a batch in `dtype` and compare."""
        return self.compare(self.ask(network, batch, dtype), batch)

    @abstractmethod
    def ask(self, network: nn.Module, batch: StepInput, dtype: torch.dtype) -> Heard:
        """Run the student on a batch in `dtype`, and get the teacher's answers."""

    @abstractmethod
    def compare(self, heard: Heard, batch: StepInput) -> LossTerms:
        """The loss of a batch, whose images are not looked at again."""


@final
class LabelsObjective(Objective):
    """Learns from labels alone."""

    def __init__(self, method: TeacherFreeMethod) -> None:
        super().__init__()
        self.method = method

    def ask(self, network: nn.Module, batch: StepInput, dtype: torch.dtype) -> Heard:
        return Heard(_logits(network, batch.images, dtype))

    def compare(self, heard: Heard, batch: StepInput) -> LossTerms:
        assert isinstance(heard.student, torch.Tensor)
        return self.method(heard.student, batch.labels)


@final
class LogitObjective(Objective):
    """Learns from a teacher's logits, stored or asked for."""

    def __init__(self, method: TeacherMethod, teacher: TeacherAnswers) -> None:
        super().__init__()
        self.method = method
        self.teacher = teacher

    def ask(self, network: nn.Module, batch: StepInput, dtype: torch.dtype) -> Heard:
        student = _logits(network, batch.images, dtype)
        return Heard(student, self.taught(batch))

    def taught(self, batch: StepInput) -> Logits:
        """The teacher's logits for a batch, by the shortest way."""
        if batch.taught is not None:
            return batch.taught.logits
        if batch.places is not None and isinstance(self.teacher, ResidentTeacher):
            return self.teacher.at(batch.places)
        return self.teacher.logits(batch.images, batch.indices, batch.slots)

    def compare(self, heard: Heard, batch: StepInput) -> LossTerms:
        assert isinstance(heard.student, torch.Tensor)
        assert isinstance(heard.teacher, torch.Tensor)
        terms = self.method(heard.student, heard.teacher, batch.labels)
        factor = self.method.ramp(batch.epoch) if batch.taught is None else batch.taught.factor
        return LossTerms(terms.hard, factor * terms.soft)


@final
class FeatureObjective(Objective):
    """Learns from a teacher's features, which are too large to store: the teacher runs at every step."""

    def __init__(self, loss: FeatureLoss, teacher: OnlineTeacher) -> None:
        super().__init__()
        self.loss = loss
        self.teacher = teacher

    def ask(self, network: nn.Module, batch: StepInput, dtype: torch.dtype) -> Heard:
        student = _answer(network, batch.images, dtype)
        return Heard(student, self.teacher.answer(batch.images))

    def compare(self, heard: Heard, batch: StepInput) -> LossTerms:
        assert isinstance(heard.student, Answer)
        assert isinstance(heard.teacher, Answer)
        return self.loss(heard.student, heard.teacher, batch.samples)


@final
class SelfFeatureObjective(Objective):
    """Learns from its own features."""

    def __init__(self, loss: SelfFeatureLoss) -> None:
        super().__init__()
        self.loss = loss

    def ask(self, network: nn.Module, batch: StepInput, dtype: torch.dtype) -> Heard:
        return Heard(_answer(network, batch.images, dtype))

    def compare(self, heard: Heard, batch: StepInput) -> LossTerms:
        assert isinstance(heard.student, Answer)
        return self.loss(heard.student, batch.samples)


def bind(
    method: Method,
    network: nn.Module,
    images: PreparedSplit,
    *,
    teacher: TeacherAnswers | None = None,
    mixing: Mixing | None = None,
) -> Objective:
    """The objective of a student that trains on `images`; random weights come from torch's generator.

    Raises:
        ParamsError: stored answers where the method or mixed images need the teacher itself.
        ModelError: the networks lack the features that the method compares.
        ValueError: a method that needs a teacher got none, or the other way round.
    """
    if isinstance(method, TeacherMethod | FeatureMethod) != (teacher is not None):
        raise ValueError(f"{type(method).__name__} and teacher={teacher} do not go together")
    if mixing is not None and isinstance(teacher, StoredTeacher):
        raise ParamsError(
            "mixed images are never seen twice, so the teacher's stored answers do not fit them; "
            "set teacher_logits.enabled: false"
        )
    if isinstance(method, TeacherMethod):
        assert teacher is not None
        return LogitObjective(method, teacher)
    if isinstance(method, TeacherFreeMethod):
        return LabelsObjective(method)
    size = (images.height, images.width)
    student = probe(_showing(network), size)
    shapes, num_classes = shapes_of(student.features), student.logits.shape[1]
    if isinstance(method, SelfFeatureMethod):
        return SelfFeatureObjective(method.build(Alone(shapes, num_classes)))
    if not isinstance(teacher, OnlineTeacher):
        raise ValueError(f"{type(method).__name__} compares features: it needs the teacher itself")
    of_teacher = shapes_of(probe(_showing(teacher.network), size).features)
    return FeatureObjective(method.build(Pair(shapes, of_teacher, images.labels, num_classes)), teacher)


def _logits(network: nn.Module, images: FloatImages, dtype: torch.dtype) -> torch.Tensor:
    with autocast(images.device, dtype):
        return network(images).float()


def _answer(network: nn.Module, images: FloatImages, dtype: torch.dtype) -> Answer:
    with autocast(images.device, dtype):
        return _showing(network).answer(images)


def _showing(network: nn.Module) -> Network:
    assert isinstance(network, Network), "a method on features needs a network that shows them"
    return network
