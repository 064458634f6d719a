"""Logit standardization (CVPR 2024, arXiv 2403.01427; sunshangquan/logit-standardization-KD, commit 6083e2de):
another method's soft term on z-scores.

Both logits are replaced by (z - mean over classes) / (std over classes + 1e-7), with the unbiased std (C - 1) as in
the authors' code, so that the student has to match the teacher's order and spacing but not its scale. The wrapped
method's hard term sees the raw logits. It therefore no longer matters how confident either network is: a temperature
works on logits of spread one.
The paper's setting for `kd`: temperature 2 (3 for some pairs) and soft_weight 9, with hard_weight 0.1. For DKD the
authors' script (commit 2ece47f7) multiplies alpha by 9, sets beta to 9 times that and not to 9 * beta, and leaves T
at 4.
Where all logits of a row are equal only the 1e-7 bounds the gradient (about 1e7).
"""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from compress.methods.base import TeacherMethod, full_precision
from compress.methods.logit_methods import LogitMethod
from compress.settings import Fraction
from compress.types import Labels, Logits, Scalar

EPSILON = 1e-7
"""Added to the standard deviation, as the authors do."""


class LogitStandardization(TeacherMethod):
    """Let another method compare z-scores instead of logits."""

    name: Literal["logit_standardization"] = "logit_standardization"
    method: LogitMethod
    """The method that compares them; its label smoothing and its weights hold."""

    @field_validator("label_smoothing")
    @classmethod
    def _belongs_to_the_wrapped_method(cls, label_smoothing: Fraction) -> Fraction:
        if label_smoothing:
            raise ValueError("has no effect here; set method.label_smoothing")
        return label_smoothing

    @property
    def compares_samples(self) -> bool:
        return self.method.compares_samples

    def hard(self, student: Logits, labels: Labels) -> Scalar:
        return self.method.hard(student, labels)

    def soft(self, student: Logits, teacher: Logits, labels: Labels) -> Scalar:
        return self.method.soft(z_scores(student), z_scores(teacher.detach()), labels)

    def ramp(self, epoch: int) -> float:
        return self.method.ramp(epoch)


def z_scores(logits: Logits) -> Logits:
    """Each row at mean zero and standard deviation one over its classes."""
    logits = full_precision(logits)
    centred = logits - logits.mean(dim=1, keepdim=True)
    return centred / (logits.std(dim=1, keepdim=True) + EPSILON)
