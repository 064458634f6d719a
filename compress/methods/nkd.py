"""Normalized knowledge distillation (NKD): "From Knowledge Distillation to Self-Knowledge Distillation",
arXiv 2303.13005; first as "Rethinking Knowledge Distillation via Cross-Entropy", arXiv 2208.10139.

soft = mean(-p_y log q_y) + gamma * T^2 * mean H(softmax(teacher without y / T), softmax(student without y / T)),
hard = cross-entropy. T does not touch the target term. The teacher's entropy is not subtracted: the minimum is not 0.
This is the authors' code as released since 2023-10-10; between 2023-07-17 and then it did not remove the target class.
"""

from __future__ import annotations

from typing import Literal

from torch.nn import functional as F

from compress.methods.base import TeacherMethod, full_precision, main_label, without_label
from compress.settings import NonNegativeFloat, PositiveFloat
from compress.types import Labels, Logits, Scalar


class NKD(TeacherMethod):
    """Weight the label by the teacher's confidence and match the distribution over the other classes."""

    name: Literal["nkd"] = "nkd"
    temperature: PositiveFloat = 1.0
    """Divides the non-target logits (T); 1 on ImageNet, 3 on CIFAR-100 in the authors' settings."""
    gamma: NonNegativeFloat = 1.5
    """Weight of the non-target term."""

    def soft(self, student: Logits, teacher: Logits, labels: Labels) -> Scalar:
        student, teacher = full_precision(student), full_precision(teacher.detach())
        labels = main_label(labels)
        label_column = labels.unsqueeze(1)
        confidence = F.softmax(teacher, dim=1).gather(1, label_column).squeeze(1)
        log_probability = F.log_softmax(student, dim=1).gather(1, label_column).squeeze(1)
        others = F.softmax(without_label(teacher, labels) / self.temperature, dim=1)
        log_others = F.log_softmax(without_label(student, labels) / self.temperature, dim=1)
        target_term = -(confidence * log_probability).mean()
        non_target_term = -(others * log_others).sum(dim=1).mean()
        return target_term + self.gamma * self.temperature**2 * non_target_term
