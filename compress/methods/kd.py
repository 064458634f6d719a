"""Knowledge distillation (Hinton et al., arXiv 1503.02531).

soft = soft_weight * T^2 * mean KL(softmax(teacher/T) || softmax(student/T)), hard = hard_weight * cross-entropy.
Defaults are those of the CIFAR-100 tables since CRD (arXiv 1910.10699): T = 4, weights 0.1 and 0.9.
"""

from __future__ import annotations

from typing import Literal

from torch.nn import functional as F

from compress.methods.base import TeacherMethod, full_precision, kl_divergence_per_sample
from compress.settings import NonNegativeFloat, PositiveFloat
from compress.types import Labels, Logits, Scalar


class KD(TeacherMethod):
    """Match the teacher's softened class probabilities."""

    name: Literal["kd"] = "kd"
    temperature: PositiveFloat = 4.0
    """Divides both logits before the softmax (T)."""
    hard_weight: NonNegativeFloat = 0.1
    """Weight of the cross-entropy with the labels."""
    soft_weight: NonNegativeFloat = 0.9
    """Weight of the divergence, on top of the factor T^2 that keeps its gradient's size."""

    def hard(self, student: Logits, labels: Labels) -> Scalar:
        return self.hard_weight * super().hard(student, labels)

    def soft(self, student: Logits, teacher: Logits, labels: Labels) -> Scalar:
        target = F.log_softmax(full_precision(teacher.detach()) / self.temperature, dim=1)
        prediction = F.log_softmax(full_precision(student) / self.temperature, dim=1)
        divergence = kl_divergence_per_sample(target, prediction).mean()
        return self.soft_weight * self.temperature**2 * divergence
