"""Regularisation by a virtual teacher (Tf-KD_reg): "Revisiting Knowledge Distillation via Label Smoothing
Regularization", CVPR 2020, arXiv 1909.11723; yuanli2333/Teacher-free-Knowledge-Distillation, commit d000ab37.

The virtual teacher d gives the label the probability a and every other class (1 - a)/(C - 1). The authors' code and
the paper's equation 9 do different things with it, so one says which:

`code`: hard + alpha * multiplier / C * mean KL(softmax(d/T) || softmax(student)). The probabilities d are used as if
they were logits, which makes the target almost uniform (C = 100, T = 20: 0.010502 for the label, 0.009995 for
others); the student is not tempered; the divergence is averaged over its elements, hence 1/C; there is no T^2. This
is close to label smoothing: the gradient pulls towards uniform with alpha * multiplier / C against 1 - alpha.

`paper`: hard + alpha * multiplier * mean KL(d^(1/T) / sum d^(1/T) || softmax(student/T)). A true temperature on both
sides (0.015741 and 0.009942 in the example; the paper's figure 3 shows this form), the divergence summed over classes
and averaged over the batch, and no T^2, because equation 9 has none: its gradient shrinks with T^2. The equation has
no multiplier either, which is 1; set it to T^2 for a soft term of the size it has in KD. The authors say that they
used a tempered student on Tiny-ImageNet and ImageNet, but have not published that code: `paper` is unverified
beyond the equation.

In both, hard = (1 - alpha) * cross-entropy. Published: alpha, T, multiplier = 0.95, 40, 1 (MobileNetV2), 0.95, 10, 1
(ShuffleNetV2), 0.1, 20, 100 (ResNet18), 0.1, 40, 50 (GoogLeNet) for CIFAR-100 with `code`; 0.1, 20 for ImageNet.
Mixed labels: d = a * label + (1 - a)(1 - label)/(C - 1), linear in the label; the authors have class numbers only.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch.nn import functional as F

from compress.methods.base import (
    TeacherFreeMethod,
    cross_entropy,
    full_precision,
    kl_divergence_per_sample,
    shares,
)
from compress.settings import Fraction, PositiveFloat
from compress.types import Labels, Logits, LossTerms


class TfKDReg(TeacherFreeMethod):
    """Match a hand-made teacher that is right with a fixed probability."""

    name: Literal["tf_kd_reg"] = "tf_kd_reg"
    form: Literal["code", "paper"] = "code"
    """Whose loss: `code` (the published results on CIFAR-100) or `paper` (equation 9)."""
    temperature: PositiveFloat = 40.0
    """Softens the virtual teacher (T), and in `paper` the student; 10 to 40 in the published settings."""
    alpha: Fraction = 0.95
    """Share of the soft term; the cross-entropy has the rest."""
    multiplier: PositiveFloat = 1.0
    """Further factor of the soft term: 1, 50 or 100 in the published settings of `code`."""
    correct_probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.99
    """Probability of the label in the virtual teacher (a)."""

    def __call__(self, student: Logits, labels: Labels) -> LossTerms:
        student = full_precision(student)
        log_target = self.log_target(shares(labels, student))
        if self.form == "code":
            prediction, scale = student, 1 / student.shape[1]
        else:
            prediction, scale = student / self.temperature, 1.0
        divergence = scale * kl_divergence_per_sample(log_target, F.log_softmax(prediction, dim=1)).mean()
        hard = (1 - self.alpha) * cross_entropy(student, labels)
        return LossTerms(hard=hard, soft=self.alpha * self.multiplier * divergence)

    def log_target(self, label: Logits) -> Logits:
        """Log-probabilities of the softened virtual teacher, from each row's share of every class."""
        teacher = virtual_teacher(label, self.correct_probability)
        return F.log_softmax((teacher if self.form == "code" else teacher.log()) / self.temperature, dim=1)


def virtual_teacher(label: Logits, correct_probability: float) -> Logits:
    """Probabilities of a teacher that gives the label a fixed probability and shares the rest among the others."""
    others = (1 - correct_probability) / (label.shape[1] - 1)
    return correct_probability * label + others * (1 - label)
