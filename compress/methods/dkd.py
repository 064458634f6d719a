"""Decoupled knowledge distillation (DKD, CVPR 2022, arXiv 2203.08679; megvii-research/mdistiller, commit a08d46f1).

soft = T^2 * mean(alpha * KL(b_teacher || b_student) + beta * KL(softmax(teacher without y / T) || softmax(student
without y / T))), where b = (p_y, 1 - p_y) at temperature T: whether it is the label, and which of the others it is.
hard = cross-entropy. The soft term grows linearly over the first epochs.

The authors subtract 1000 from the label's logit and take logarithms of summed probabilities: NaN in float32 at
logits near 50 with T = 1, and in float64 at 500. Here b is a sigmoid of the label's logit minus the log-sum-exp of
the others, and the label's column is deleted: the same values, finite everywhere.
A mixed image counts as its main label. With two classes the second part is zero.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from compress.methods.base import (
    TeacherMethod,
    full_precision,
    kl_divergence_per_sample,
    main_label,
    without_label,
)
from compress.settings import NonNegativeFloat, PositiveFloat, PositiveInt
from compress.types import Labels, Logits, Scalar


class DKD(TeacherMethod):
    """Match the label's probability and the distribution over the other classes, each with a weight of its own."""

    name: Literal["dkd"] = "dkd"
    temperature: PositiveFloat = 4.0
    """Divides both logits before the softmax (T); 4 on CIFAR-100, 1 on ImageNet."""
    alpha: NonNegativeFloat = 1.0
    """Weight of the label against the rest; 1 in every published setting."""
    beta: NonNegativeFloat = 8.0
    """Weight of the distribution over the other classes; published values reach from 0.5 to 8."""
    warmup_epochs: PositiveInt = 20
    """Epochs until the soft term has its full weight; 20 on CIFAR-100, 1 (no warm-up) on ImageNet."""

    def soft(self, student: Logits, teacher: Logits, labels: Labels) -> Scalar:
        labels = main_label(labels)
        student = full_precision(student) / self.temperature
        teacher = full_precision(teacher.detach()) / self.temperature
        others_student, others_teacher = without_label(student, labels), without_label(teacher, labels)
        of_label = kl_divergence_per_sample(
            _label_or_not(teacher, others_teacher, labels), _label_or_not(student, others_student, labels)
        )
        of_others = kl_divergence_per_sample(F.log_softmax(others_teacher, dim=1), F.log_softmax(others_student, dim=1))
        return self.temperature**2 * (self.alpha * of_label + self.beta * of_others).mean()

    def ramp(self, epoch: int) -> float:
        return min(epoch / self.warmup_epochs, 1.0)


def _label_or_not(logits: Logits, others: Tensor, labels: Tensor) -> Float[Tensor, "B 2"]:
    """Log-probabilities of the label and of all other classes together."""
    margin = logits.gather(1, labels.unsqueeze(1)).squeeze(1) - torch.logsumexp(others, dim=1)
    return torch.stack((F.logsigmoid(margin), F.logsigmoid(-margin)), dim=1)
