"""Self-training (Tf-KD_self): "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020,
arXiv 1909.11723; yuanli2333/Teacher-free-Knowledge-Distillation, commit d000ab37.

soft = alpha * multiplier * T^2 / C * mean KL(softmax(teacher/T) || softmax(student/T)), hard = (1 - alpha) *
cross-entropy; the teacher is the same architecture, trained on the labels before. The sum is the authors' whole loss.

The 1/C comes from a divergence averaged over its elements. The author says that this is meant and that the published
settings were searched with it, so it stays: `kd` with soft_weight = alpha * multiplier / C is the same soft term.
Published for CIFAR-100 (alpha, T, multiplier): MobileNetV2 and ShuffleNetV2 0.95, 20, 1; ResNet18 0.95, 6, 50;
GoogLeNet 0.4, 20, 50; DenseNet121 0.9, 20, 50; ResNeXt29 0.9, 20, 100.
"""

from __future__ import annotations

from typing import Literal

from torch.nn import functional as F

from compress.methods.base import TeacherMethod, full_precision, kl_divergence_per_sample
from compress.settings import Fraction, PositiveFloat
from compress.types import Labels, Logits, Scalar


class TfKDSelf(TeacherMethod):
    """Match a trained network of one's own kind."""

    name: Literal["tf_kd_self"] = "tf_kd_self"
    temperature: PositiveFloat = 20.0
    """Divides both logits before the softmax (T); 6 or 20 in the published settings."""
    alpha: Fraction = 0.95
    """Share of the soft term; the cross-entropy has the rest."""
    multiplier: PositiveFloat = 1.0
    """Further factor of the soft term: 1, 50 or 100 in the published settings."""

    def hard(self, student: Logits, labels: Labels) -> Scalar:
        return (1 - self.alpha) * super().hard(student, labels)

    def soft(self, student: Logits, teacher: Logits, labels: Labels) -> Scalar:
        target = F.log_softmax(full_precision(teacher.detach()) / self.temperature, dim=1)
        prediction = F.log_softmax(full_precision(student) / self.temperature, dim=1)
        divergence = kl_divergence_per_sample(target, prediction).mean() / student.shape[1]
        return self.alpha * self.multiplier * self.temperature**2 * divergence
