"""Our side of a comparison with a function of the authors.

Code bases wrap the same loss differently: some return the bare divergence, some add the cross-entropy, one leaves
the teacher's entropy in. A counterpart says how to get the value they return from our terms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Int64
from pydantic import JsonValue, NonNegativeInt, TypeAdapter, ValidationError
from torch import Tensor

from compress.methods.base import TeacherFreeMethod, TeacherMethod
from compress.methods.vectors.file import Layers
from compress.types import LossTerms

PAIRS = TypeAdapter(list[tuple[NonNegativeInt, NonNegativeInt]])


class NotCoveredError(Exception):
    """There is no counterpart for a case, with the reason."""


class Batch(NamedTuple):
    """The inputs of a case in one floating type."""

    student: Tensor
    teacher: Tensor
    labels: Tensor
    """Class numbers, or each row's share of every class."""
    layers: Mapping[str, Layers] = {}
    """The numbers under `extra` in the file."""


Term = Callable[[Batch], Tensor]


class Counterpart(NamedTuple):
    """Which of our terms equals what a function of the authors returns."""

    loss: Term
    """What the function returns."""
    total: Callable[[float, float], Term] | None = None
    """What their training loop minimises, given its weights of the cross-entropy and of the loss."""
    components: Mapping[str, Term] = {}
    """Parts that the file holds besides."""
    soft_labels: bool = False
    """Whether it gets mixed labels."""
    remark: str = ""
    """What a reader of the comparison should know."""
    deviating: Term | None = None
    """What our method does instead, where it leaves this state of their code on purpose."""


class Hyper:
    """Hyper-parameters of a case; each must be asked for, so that none is overlooked."""

    def __init__(self, values: Mapping[str, JsonValue]) -> None:
        self._values = dict(values)

    def number(self, name: str, default: float | None = None) -> float:
        """One of them that is a number."""
        if default is not None and name not in self._values:
            return default
        value = self._take(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise NotCoveredError(f"the hyper-parameter {name} is no number: {value!r}")
        return float(value)

    def text(self, name: str) -> str:
        """One of them that is a text."""
        value = self._take(name)
        if not isinstance(value, str):
            raise NotCoveredError(f"the hyper-parameter {name} is no text: {value!r}")
        return value

    def pairs(self, name: str) -> Int64[Tensor, "B 2"]:
        """One of them that holds two class numbers for each row."""
        try:
            return torch.tensor(PAIRS.validate_python(self._take(name)))
        except ValidationError as error:
            raise NotCoveredError(f"the hyper-parameter {name} does not list two class numbers for each row") from error

    def expect(self, name: str, value: str) -> None:
        """Take one that can only have one value, if it is there."""
        if name in self._values and (found := self._values.pop(name)) != value:
            raise NotCoveredError(f"the hyper-parameter {name} is {found!r}, not {value!r}")

    def leave(self, name: str) -> None:
        """Take one that repeats others."""
        self._values.pop(name, None)

    def _take(self, name: str) -> JsonValue:
        if name not in self._values:
            raise NotCoveredError(f"the hyper-parameter {name} is missing")
        return self._values.pop(name)

    @property
    def rest(self) -> list[str]:
        """Names that nobody asked for."""
        return list(self._values)


def terms(method: TeacherMethod | TeacherFreeMethod, batch: Batch) -> LossTerms:
    """A method's terms, whether or not it has a teacher."""
    if isinstance(method, TeacherMethod):
        return method(batch.student, batch.teacher, batch.labels)
    return method(batch.student, batch.labels)


def hard(method: TeacherMethod | TeacherFreeMethod) -> Term:
    """What the labels say by a method."""
    return lambda batch: terms(method, batch).hard


def soft(method: TeacherMethod | TeacherFreeMethod) -> Term:
    """What the teacher, or the method in its place, says."""
    return lambda batch: terms(method, batch).soft


def total(method: TeacherMethod | TeacherFreeMethod) -> Term:
    """What training with a method minimises."""
    return lambda batch: terms(method, batch).total


def unweighted(weight: float, term: Term) -> Term:
    """The term, if the authors' loop leaves at weight one what our method cannot weight."""
    if weight != 1:
        raise NotCoveredError(f"our method has no weight for what the training loop takes {weight:g} times")
    return term


def at_weight_one(term: Term) -> Callable[[float, float], Term]:
    """A loop's total by a method that weights nothing from outside."""
    return lambda ce, weight: unweighted(ce, unweighted(weight, term))
