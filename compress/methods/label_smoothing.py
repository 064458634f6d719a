"""Label smoothing in both published conventions.

`uniform` (Szegedy et al., arXiv 1512.00567; torch): the target is (1 - s) label + s/C everywhere.
`others` (the code of "Revisit Knowledge Distillation", arXiv 1909.11723): 1 - s for the label, s/(C-1) for each
other class; equal to `uniform` with smoothing s * C/(C-1). The label of a mixed image is a share of every class;
both targets are linear in it, so that of a mixture is the mixture of the targets.
"""

from __future__ import annotations

from typing import Literal

from torch.nn import functional as F

from compress.methods.base import TeacherFreeMethod, full_precision, shares
from compress.settings import Fraction
from compress.types import Labels, Logits, LossTerms


class LabelSmoothing(TeacherFreeMethod):
    """Train on labels that leave a share of their mass to the other classes."""

    name: Literal["label_smoothing"] = "label_smoothing"
    smoothing: Fraction = 0.1
    """Mass taken from the label (the papers' epsilon)."""
    convention: Literal["uniform", "others"] = "uniform"
    """Whether the mass is spread over all classes or over the other ones only."""

    def __call__(self, student: Logits, labels: Labels) -> LossTerms:
        student = full_precision(student)
        label, num_classes = shares(labels, student), student.shape[1]
        if self.convention == "uniform":
            spread = self.smoothing / num_classes
        else:
            spread = self.smoothing / (num_classes - 1) * (1 - label)
        target = (1 - self.smoothing) * label + spread
        hard = -(target * F.log_softmax(student, dim=1)).sum(dim=1).mean()
        return LossTerms(hard=hard, soft=hard.new_zeros(()))
