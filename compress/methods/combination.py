"""A method on logits together with methods on features, as in WTTM+CRD, WTTM+ITRD and NKD+ViTKD.

hard = the logit method's, counted once; soft = ramp(epoch) * its soft term + the sum of the feature methods' soft
terms, each with the weights of its own settings. So WTTM+CRD is CE + beta * WTTM + 0.8 * CRD, as the trainer of
zkxufo/TTM (arXiv 2402.11148) adds them; the published beta is another one than without a companion.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator
from torch import nn

from compress.methods.base import FeatureLoss, FeatureMethod, Pair, Samples, TeacherMethod
from compress.methods.feature_methods import SingleFeatureMethod
from compress.methods.logit_methods import LogitMethod
from compress.methods.logit_standardization import LogitStandardization
from compress.types import Answer, Logits, Scalar


class Combination(FeatureMethod):
    """Learn from the teacher's logits and features at once."""

    name: Literal["combination"] = "combination"
    logits: Annotated[LogitMethod | LogitStandardization, Field(discriminator="name")]
    """The method on logits; it alone sets what the labels say."""
    features: Annotated[tuple[SingleFeatureMethod, ...], Field(min_length=1)]
    """The methods on features, each at most once."""

    @field_validator("features")
    @classmethod
    def _each_once(cls, features: tuple[SingleFeatureMethod, ...]) -> tuple[SingleFeatureMethod, ...]:
        names = [method.name for method in features]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"names {', '.join(repeated)} more than once; set its weight instead")
        return features

    @property
    def compares_samples(self) -> bool:
        return any(method.compares_samples for method in (self.logits, *self.features))

    def build(self, pair: Pair) -> CombinationLoss:
        return CombinationLoss(self.logits, [method.build(pair) for method in self.features])


class CombinationLoss(FeatureLoss):
    """One pair's losses on features beside a method on logits."""

    def __init__(self, logits: TeacherMethod, parts: list[FeatureLoss]) -> None:
        super().__init__()
        self.logits = logits
        self.parts = nn.ModuleList(parts)

    def hard(self, student: Logits, samples: Samples) -> Scalar:
        return self.logits.hard(student, samples.labels)

    def soft(self, student: Answer, teacher: Answer, samples: Samples) -> Scalar:
        soft = self.logits.ramp(samples.epoch) * self.logits.soft(student.logits, teacher.logits, samples.labels)
        for part in self.parts:
            assert isinstance(part, FeatureLoss)
            soft = soft + part.soft(student, teacher, samples)
        return soft
