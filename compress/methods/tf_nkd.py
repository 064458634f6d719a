"""Teacher-free normalized distillation (tf-NKD): "Rethinking Knowledge Distillation via Cross-Entropy",
arXiv 2208.10139; yzd-v/cls_KD, commit de48db40, the last one that holds it. USKD replaced it (arXiv 2303.13005).

soft = mean(-w log s), hard = cross-entropy, where s = q_y is the student's probability of the label and the weight
w = s + 1 - (batch mean of s) is a constant for the gradient. There is nothing to set.

Mixed labels: one such term for each of the two largest shares V, with w = s + V - mean s, and w = 0 where V = 0.
Hazards, all of the published form:
- The mean is over the batch: an image's weight depends on its neighbours and, with several processes, on the local
  ones only. In a batch of one w = 1.
- The mean of the weights is 1, so that the gradient is about twice that of cross-entropy; for a small second share
  w can be negative.
- In a batch of mixed and unmixed images an unmixed one has no second label: any class of share zero serves, and its
  probability enters the mean. The authors take the one their sort returns first; here it is the lowest class number.
The authors take the logarithm of a softmax, which is infinite in float32 at logits near 50; here it is a log-softmax.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from compress.methods.base import TeacherFreeMethod, cross_entropy, full_precision
from compress.types import Labels, Logits, LossTerms


class TfNKD(TeacherFreeMethod):
    """Weight the label by the student's own confidence, relative to the batch."""

    name: Literal["tf_nkd"] = "tf_nkd"

    @property
    def compares_samples(self) -> bool:
        return True

    def __call__(self, student: Logits, labels: Labels) -> LossTerms:
        classes, class_shares = main_labels(labels)
        soft = label_terms(student, classes, class_shares).sum()
        return LossTerms(hard=cross_entropy(student, labels), soft=soft)


def main_labels(labels: Labels) -> tuple[Int64[Tensor, "B _"], Float[Tensor, "B _"]]:
    """Class numbers and shares of each row's label, or of its two largest shares; of equal ones the lower number."""
    if not labels.is_floating_point():
        classes = labels.long().unsqueeze(1)
        return classes, torch.ones_like(classes, dtype=torch.float32)
    class_shares, classes = labels.sort(dim=1, descending=True, stable=True)
    return classes[:, :2], class_shares[:, :2]


def label_terms(student: Logits, classes: Int64[Tensor, "B L"], class_shares: Float[Tensor, "B L"]) -> Tensor:
    """The loss of the first label of each row, of the second, ...; shape (L,)."""
    log_probability = F.log_softmax(full_precision(student), dim=1).gather(1, classes)
    class_shares = class_shares.to(log_probability.dtype)
    probability = log_probability.detach().exp()
    weight = probability + class_shares - probability.mean(dim=0)
    weight = torch.where(class_shares > 0, weight, torch.zeros_like(weight))
    return -(weight * log_probability).mean(dim=0)
