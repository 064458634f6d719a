"""Label smoothing in both published conventions.

`uniform` (Szegedy et al., arXiv 1512.00567; torch): the target is (1 - s) one-hot + s/C everywhere.
`others` (the code of "Revisit Knowledge Distillation", arXiv 1909.11723): 1 - s for the label, s/(C-1) for each
other class; equal to `uniform` with smoothing s * C/(C-1).
"""

from __future__ import annotations

from typing import Literal

from torch.nn import functional as F

from compress.methods.base import TeacherFreeMethod, full_precision
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
        log_probabilities = F.log_softmax(full_precision(student), dim=1)
        of_label = log_probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
        of_all = log_probabilities.sum(dim=1)
        num_classes = student.shape[1]
        if self.convention == "uniform":
            per_sample = (1 - self.smoothing) * of_label + self.smoothing / num_classes * of_all
        else:
            per_sample = (1 - self.smoothing) * of_label + self.smoothing / (num_classes - 1) * (of_all - of_label)
        hard = -per_sample.mean()
        return LossTerms(hard=hard, soft=hard.new_zeros(()))
