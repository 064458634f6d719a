"""Information-theoretic representation distillation (ITRD, BMVC 2022, arXiv 2112.00459; roymiles/ITRD and the copy in
zkxufo/TTM, commit fe457b33).

With pooled features standardised over the batch, c_d the correlation of the student's and the teacher's dimension d
(a sum over the batch divided by B, the deviation by B - 1) and G the Gram matrices of row-normalised features divided
by their trace, the joint one G_st that of the elementwise product:
    L_corr = log2(sum over d of |c_d - 1|^(2 alpha)),    L_mi = sum(G_s^2) - sum(G_st^2),
soft = correlation_weight * L_corr + mutual_weight * L_mi, hard = cross-entropy. A linear layer brings the student to
the teacher's width: always in L_corr, in L_mi only where the widths differ. Both terms are statistics of the batch.

Deviation: the authors divide without an epsilon, so that a constant dimension or a batch of one gives NaN. Here a
dimension whose deviation is zero, or only what rounding left of zero, is divided by one: it correlates with nothing
(c_d = 0) and its gradient stays finite. The same holds for rows and traces of zero in L_mi. Everywhere else the values
are the authors'. Computed in float32.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from compress.methods.base import FeatureLoss, FeatureMethod, Pair, Samples, full_precision
from compress.settings import NonNegativeFloat, PositiveFloat
from compress.types import Answer, Scalar

ROUNDING = 8
"""Multiples of the floating type's epsilon, relative to the mean, up to which a deviation counts as zero."""


class ITRD(FeatureMethod):
    """Correlate each dimension with the teacher's and match how images relate to each other."""

    name: Literal["itrd"] = "itrd"
    correlation_weight: NonNegativeFloat = 2.0
    """Weight of the correlation term (beta_corr)."""
    mutual_weight: NonNegativeFloat = 1.0
    """Weight of the mutual information (beta_mi); the authors set 0 for some pairs of unlike networks."""
    alpha: PositiveFloat = 1.5
    """Order of the entropy (alpha); 1.01 for networks of one family, 1.5 for unlike ones."""

    @property
    def compares_samples(self) -> bool:
        return True

    def build(self, pair: Pair) -> ITRDLoss:
        return ITRDLoss(self, pair.student.pooled, pair.teacher.pooled)


class ITRDLoss(FeatureLoss):
    """ITRD for networks of these widths."""

    def __init__(self, method: ITRD, student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.method = method
        self.embedding = nn.Linear(student_width, teacher_width)
        self.widths_differ = student_width != teacher_width

    def soft(self, student: Answer, teacher: Answer, samples: Samples) -> Scalar:
        dtype = self.embedding.weight.dtype
        own, target = student.features.pooled.to(dtype), teacher.features.pooled.detach().to(dtype)
        with torch.autocast(own.device.type, enabled=False):
            embedded = self.embedding(own)
            correlation = correlation_term(embedded, target, self.method.alpha)
            mutual = mutual_term(embedded if self.widths_differ else own, target)
        return self.method.correlation_weight * correlation + self.method.mutual_weight * mutual


def correlation_term(student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"], alpha: float) -> Scalar:
    """L_corr in bits, from features of equal width."""
    product = _standardised(full_precision(student)) * _standardised(full_precision(teacher))
    distance = product.mean(dim=0) - 1
    return distance.square().pow(alpha).sum().log2()


def mutual_term(student: Float[Tensor, "B _"], teacher: Float[Tensor, "B _"]) -> Scalar:
    """L_mi, without the entropy of the teacher alone, which is a constant."""
    of_student, of_teacher = _gram(full_precision(student)), _gram(full_precision(teacher))
    return _per_trace(of_student).square().sum() - _per_trace(of_student * of_teacher).square().sum()


def _standardised(features: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """Mean zero and unbiased deviation one in each dimension; constant dimensions only lose their mean."""
    mean = features.mean(dim=0)
    centred = features - mean
    variance = centred.square().sum(dim=0) / max(len(features) - 1, 1)
    rounding = ROUNDING * torch.finfo(features.dtype).eps * mean.detach().abs()
    is_constant = variance.detach() <= rounding.square()
    return centred / torch.where(is_constant, torch.ones_like(variance), variance).sqrt()


def _gram(features: Float[Tensor, "B _"]) -> Float[Tensor, "B B"]:
    """Cosines between all rows; a row of zeros is at right angles to every one, itself included."""
    squares = features.square().sum(dim=1, keepdim=True)
    rows = features / torch.where(squares == 0, torch.ones_like(squares), squares).sqrt()
    return rows @ rows.T


def _per_trace(gram: Float[Tensor, "B B"]) -> Float[Tensor, "B B"]:
    trace = gram.trace()
    return gram / torch.where(trace == 0, torch.ones_like(trace), trace)
