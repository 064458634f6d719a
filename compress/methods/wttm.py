"""Weighted transformed teacher matching (WTTM, ICLR 2024, arXiv 2402.11148).

TTM with each sample weighted by the power sum of the teacher's probabilities, U = sum_k p_k^gamma, which lies
between 1 (a certain teacher) and C^(1-gamma) (a uniform one). The mean is over the batch, not over the weights.
The official code forms pow(softmax, gamma), which underflows in float16; here U = exp(lse(gamma v) - gamma lse(v)).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional as F

from compress.methods.base import TeacherMethod, full_precision, kl_divergence_per_sample
from compress.settings import NonNegativeFloat, PositiveFloat
from compress.types import Labels, Logits, Scalar


class WTTM(TeacherMethod):
    """Match the power-transformed teacher, harder where the teacher is unsure."""

    name: Literal["wttm"] = "wttm"
    gamma: PositiveFloat = 0.1
    """Exponent of the power transform, the inverse of a temperature."""
    beta: NonNegativeFloat = 2.25
    """Weight of the weighted divergence; published values reach from 1.4 to 16."""

    def soft(self, student: Logits, teacher: Logits, labels: Labels) -> Scalar:
        teacher = full_precision(teacher.detach())
        target = F.log_softmax(self.gamma * teacher, dim=1)
        prediction = F.log_softmax(full_precision(student), dim=1)
        divergence = power_sum(teacher, self.gamma) * kl_divergence_per_sample(target, prediction)
        return self.beta * divergence.mean()


def power_sum(logits: Logits, gamma: float) -> torch.Tensor:
    """Sum over classes of softmax(logits)^gamma, shape (B,), without forming the probabilities."""
    logits = logits - logits.amax(dim=1, keepdim=True)  # keeps both sums small, so that their difference is exact
    return (torch.logsumexp(gamma * logits, dim=1) - gamma * torch.logsumexp(logits, dim=1)).exp()
