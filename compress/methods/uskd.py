"""Universal self-knowledge distillation (USKD): "From Knowledge Distillation to Self-Knowledge Distillation: A Unified
Approach with Normalized Loss and Customized Soft Labels", ICCV 2023, arXiv 2303.13005; yzd-v/cls_KD, commit 87a71975.

z are the logits, q their softmax, u the logits of a linear layer on an intermediate feature (the weak branch), r their
softmax. hard = cross-entropy, soft = target_weight * L_target + non_target_weight * L_non + weak_weight * L_weak with
    L_target = mean(-w log q_y),  w = q_y^2 + V - mean(q_y^2),  V the label's share, 1 unless images are mixed,
    L_weak = mean H(0.9 label + 0.1/C, r),
    L_non = mean H(n, softmax(z without y)).
n gives the class on rank i the weight 1/i (Zipf's law), loses the label and is scaled to sum 1; classes rank by
r_k / (1 - r_y + 1e-6) + q_k / (1 - q_y + 1e-6), the largest first. Constants for the gradient: w and n.

This is the form of the paper and of the first release. Since 2023-07-17 the released code puts log q in the place of
q when it ranks, so that the weak branch no longer matters: an oversight, not followed here.
Mixed labels, as in the authors' code: the two largest shares both count in L_target, each with a mean of its own, both
leave n, and r_y and q_y in the ranking are their sums. Deviation: a class of share zero is no label. The authors' code
takes one where a row of a mixed batch has a single label, and which one depends on how their sort breaks ties.

The intermediate feature is the mean over pixels after the next-to-last stage; a network that ends with a further
convolution behind its last stage gives that stage's. Transformers give the class token after half of their blocks,
those without one the mean over the patches there (a guess: the paper has no such network).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from compress.errors import ModelError
from compress.methods.base import (
    Alone,
    FeatureShapes,
    Samples,
    SelfFeatureLoss,
    SelfFeatureMethod,
    cross_entropy,
    full_precision,
)
from compress.settings import NonNegativeFloat
from compress.types import Answer, Features, Labels, Logits, LossTerms, Scalar

EPSILON = 1e-6
"""Added to the denominators of the ranking, as the authors do."""
WEAK_SMOOTHING = 0.1
"""Label smoothing of the weak branch."""


class USKD(SelfFeatureMethod):
    """Soft labels out of the network's own answer and that of a linear layer on an intermediate feature."""

    name: Literal["uskd"] = "uskd"
    target_weight: NonNegativeFloat = 1.0
    """Weight of the target term (alpha); 0.1 on CIFAR-100."""
    non_target_weight: NonNegativeFloat = 0.1
    """Weight of the non-target term (beta)."""
    weak_weight: NonNegativeFloat = 0.005
    """Weight of the weak branch's own cross-entropy (mu); 0.1 on CIFAR-100."""

    @property
    def compares_samples(self) -> bool:
        return True

    def build(self, alone: Alone) -> USKDLoss:
        if alone.num_classes < 3:
            raise ModelError(
                f"uskd ranks the classes beside the labels, of which a mixed image has two: it takes 3 classes, "
                f"not {alone.num_classes}; use another method"
            )
        place = _intermediate(alone.student)
        return USKDLoss(self, place, nn.Linear(place.width, alone.num_classes))


class USKDLoss(SelfFeatureLoss):
    """USKD for one network."""

    def __init__(self, method: USKD, place: _Place, weak_head: nn.Linear) -> None:
        super().__init__()
        self.method = method
        self.place = place
        self.weak_head = weak_head

    def forward(self, student: Answer, samples: Samples) -> LossTerms:
        feature = self.place.of(student.features).to(self.weak_head.weight.dtype)
        with torch.autocast(feature.device.type, enabled=False):
            terms = uskd_terms(student.logits, self.weak_head(feature), samples.labels)
        method = self.method
        soft = method.target_weight * terms.target + method.non_target_weight * terms.non_target
        return LossTerms(cross_entropy(student.logits, samples.labels), soft + method.weak_weight * terms.weak)


class UskdTerms(NamedTuple):
    """The three parts of the soft term at weight one."""

    target: Scalar
    non_target: Scalar
    weak: Scalar


def uskd_terms(student: Logits, weak: Logits, labels: Labels) -> UskdTerms:
    """L_target, L_non and L_weak from the logits of the network and of its weak branch."""
    student, weak = full_precision(student), full_precision(weak)
    labelled = _labelled(labels, like=student)
    ranking = _beside(F.softmax(weak.detach(), dim=1), labelled) + _beside(F.softmax(student.detach(), dim=1), labelled)
    return UskdTerms(
        target_term(student, labelled),
        non_target_term(student, ranking, labelled.is_label),
        cross_entropy(weak, labels, WEAK_SMOOTHING),
    )


class _Labelled(NamedTuple):
    """Labels in a form that class numbers and mixed labels share."""

    classes: Int64[Tensor, "B L"]
    shares: Float[Tensor, "B L"]
    is_label: Bool[Tensor, "B C"]
    """Where a row's classes have a share."""


def _labelled(labels: Labels, *, like: Logits) -> _Labelled:
    if labels.is_floating_point():
        shares, classes = labels.to(like.dtype).sort(dim=1, descending=True, stable=True)
        shares, classes = shares[:, :2], classes[:, :2]
    else:
        classes = labels.long().unsqueeze(1)
        shares = torch.ones_like(classes, dtype=like.dtype)
    is_label = torch.zeros_like(like, dtype=torch.bool).scatter(1, classes, shares > 0)
    return _Labelled(classes, shares, is_label)


def target_term(student: Logits, labelled: _Labelled) -> Scalar:
    """L_target. The mean of q_y^2 is over the rows that have such a label."""
    log_probability = F.log_softmax(student, dim=1).gather(1, labelled.classes)
    is_there = labelled.shares > 0
    squared = torch.where(is_there, (2 * log_probability.detach()).exp(), 0.0)
    mean = squared.sum(dim=0) / is_there.sum(dim=0).clamp(min=1)
    weight = torch.where(is_there, squared + labelled.shares - mean, 0.0)
    return -(weight * log_probability).sum(dim=1).mean()


def non_target_term(student: Logits, ranking: Logits, is_label: Bool[Tensor, "B C"]) -> Scalar:
    """L_non for classes that rank by any score, the largest first."""
    rank = ranking.argsort(dim=1, descending=True).argsort(dim=1)
    target = torch.where(is_label, 0.0, 1.0 / (1 + rank.to(student.dtype)))
    target = target / target.sum(dim=1, keepdim=True)
    normaliser = student.masked_fill(is_label, -torch.inf).logsumexp(dim=1, keepdim=True)
    return (target * (normaliser - student)).sum(dim=1).mean()


def _beside(probabilities: Logits, labelled: _Labelled) -> Logits:
    """Probabilities relative to what the labels leave."""
    of_labels = torch.where(labelled.is_label, probabilities, 0.0).sum(dim=1, keepdim=True)
    return probabilities / (1 - of_labels + EPSILON)


class _Place(NamedTuple):
    """Where in the network the weak branch begins."""

    width: int
    position: int
    """Among the class tokens or the maps."""
    is_token: bool

    def of(self, features: Features) -> Float[Tensor, "B D"]:
        """The intermediate feature, pooled."""
        return features.class_tokens[self.position] if self.is_token else features.maps[self.position].mean(dim=(2, 3))


def _intermediate(shapes: FeatureShapes) -> _Place:
    if shapes.class_tokens:
        index = max(len(shapes.class_tokens) // 2 - 1, 0)
        return _Place(shapes.class_tokens[index], index, is_token=True)
    if len(shapes.maps) < 2:
        raise ModelError(
            f"uskd needs a feature in the middle of the network, but this one has {len(shapes.maps)} stages; choose a "
            "deeper network"
        )
    if all(each == shapes.last_map for each in shapes.maps):
        index = len(shapes.maps) // 2 - 1
    else:
        index = -1 if shapes.maps[-1][0] != shapes.last_map[0] else -2
    return _Place(shapes.maps[index][0], index, is_token=False)
