"""Transformed teacher matching (TTM, ICLR 2024, arXiv 2402.11148).

The teacher's probabilities are raised to the power gamma and renormalised, which is softmax(gamma * logits);
the student is not tempered. soft = beta * mean KL(transformed teacher || softmax(student)), hard = cross-entropy.
There is no factor T^2 and none must be added.
"""

from __future__ import annotations

from typing import Literal

from torch.nn import functional as F

from compress.methods.base import TeacherMethod, full_precision, kl_divergence_per_sample
from compress.settings import NonNegativeFloat, PositiveFloat
from compress.types import Labels, Logits, Scalar


class TTM(TeacherMethod):
    """Match the power-transformed teacher with the untempered student."""

    name: Literal["ttm"] = "ttm"
    gamma: PositiveFloat = 0.1
    """Exponent of the power transform, the inverse of a temperature."""
    beta: NonNegativeFloat = 45.0
    """Weight of the divergence; published values reach from 7 to 101."""

    def soft(self, student: Logits, teacher: Logits, labels: Labels) -> Scalar:
        target = F.log_softmax(self.gamma * full_precision(teacher.detach()), dim=1)
        prediction = F.log_softmax(full_precision(student), dim=1)
        return self.beta * kl_divergence_per_sample(target, prediction).mean()
