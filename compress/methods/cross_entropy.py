"""The plain baseline: cross-entropy with the labels."""

from __future__ import annotations

from typing import Literal

from compress.methods.base import TeacherFreeMethod, cross_entropy
from compress.types import Labels, Logits, LossTerms


class CrossEntropy(TeacherFreeMethod):
    """Train on the labels alone."""

    name: Literal["cross_entropy"] = "cross_entropy"

    def __call__(self, student: Logits, labels: Labels) -> LossTerms:
        hard = cross_entropy(student, labels)
        return LossTerms(hard=hard, soft=hard.new_zeros(()))
