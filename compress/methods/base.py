"""What a distillation method is, and the arithmetic that several of them share.

Teacher logits are constants everywhere. Half-precision logits are raised to float32 before any exponential,
float64 is kept, and probabilities are only ever formed from log-softmax, so that no loss overflows.

A method is settings. Most are also functions, called with a batch's logits. Methods that train layers of their own or
remember samples are built into a module first, for one pair of networks and one data set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn import functional as F

from compress.settings import Fraction, Settings
from compress.types import Answer, Features, LabelArray, Labels, Logits, LossTerms, Scalar


class AnyMethod(Settings, ABC):
    """What every kind of method can be asked."""

    @property
    def compares_samples(self) -> bool:
        """Whether an image's loss depends on the others of its batch, so that a batch can not be taken in pieces."""
        return False


class TeacherMethod(AnyMethod, ABC):
    """A loss that compares student logits with a teacher's; its fields are the hyper-parameters."""

    label_smoothing: Fraction = 0.0
    """Share of the hard label spread evenly over all classes, in the hard term only."""

    def __call__(self, student: Logits, teacher: Logits, labels: Labels) -> LossTerms:
        """Weighted hard and soft terms in nats, each a mean over the batch."""
        return LossTerms(self.hard(student, labels), self.soft(student, teacher, labels))

    def hard(self, student: Logits, labels: Labels) -> Scalar:
        """What the labels say: cross-entropy at weight one, unless the method weights it."""
        return cross_entropy(student, labels, self.label_smoothing)

    @abstractmethod
    def soft(self, student: Logits, teacher: Logits, labels: Labels) -> Scalar:
        """What the teacher says, weighted, in nats, from logits of any floating type."""

    def ramp(self, epoch: int) -> float:
        """Factor of the soft term in an epoch, counted from 1."""
        return 1.0


class TeacherFreeMethod(AnyMethod, ABC):
    """A loss that needs no teacher."""

    @abstractmethod
    def __call__(self, student: Logits, labels: Labels) -> LossTerms:
        """Weighted hard and soft terms in nats, each a mean over the batch."""


class FeatureShapes(NamedTuple):
    """Sizes of a network's features, without the batch."""

    pooled: int
    """Length of the pooled feature."""
    maps: tuple[tuple[int, int, int], ...]
    """Channels, height and width of each map."""
    last_map: tuple[int, int, int]
    """The same of the map that is pooled."""
    class_tokens: tuple[int, ...]
    """Length of each class token."""


def shapes_of(features: Features) -> FeatureShapes:
    """The sizes of features that a network showed for a batch of any size."""

    def size(feature_map: Tensor) -> tuple[int, int, int]:
        _, channels, height, width = feature_map.shape
        return channels, height, width

    return FeatureShapes(
        features.pooled.shape[1],
        tuple(size(each) for each in features.maps),
        size(features.last_map),
        tuple(token.shape[1] for token in features.class_tokens),
    )


class Pair(NamedTuple):
    """What a loss with parts of its own is built for."""

    student: FeatureShapes
    teacher: FeatureShapes
    labels: LabelArray
    """Of all train images, in their order."""
    num_classes: int


class Alone(NamedTuple):
    """What a loss with parts of its own, but without a teacher, is built for."""

    student: FeatureShapes
    num_classes: int


class Samples(NamedTuple):
    """Which images a batch consists of."""

    labels: Labels
    indices: Int64[Tensor, " B"]
    """Position of each image among all train images."""
    epoch: int
    """Counted from 1."""


class FeatureLoss(nn.Module, ABC):
    """A loss in use. Its parameters are trained with the student's, its buffers are part of the training state."""

    def forward(self, student: Answer, teacher: Answer, samples: Samples) -> LossTerms:
        """Weighted hard and soft terms in nats."""
        return LossTerms(self.hard(student.logits, samples), self.soft(student, teacher, samples))

    def hard(self, student: Logits, samples: Samples) -> Scalar:
        """What the labels say: cross-entropy at weight one, unless the method weights it."""
        return cross_entropy(student, samples.labels)

    @abstractmethod
    def soft(self, student: Answer, teacher: Answer, samples: Samples) -> Scalar:
        """What the teacher's features say, weighted."""


class FeatureMethod(AnyMethod, ABC):
    """A loss on the features of student and teacher."""

    @abstractmethod
    def build(self, pair: Pair) -> FeatureLoss:
        """The loss for one pair of networks; random weights come from torch's generator, which the caller seeds.

        Raises:
            ModelError: these networks lack the features that the method compares.
        """


class SelfFeatureLoss(nn.Module, ABC):
    """A loss in use that needs no teacher; like `FeatureLoss` otherwise."""

    @abstractmethod
    def forward(self, student: Answer, samples: Samples) -> LossTerms:
        """Weighted hard and soft terms in nats, each a mean over the batch."""


class SelfFeatureMethod(AnyMethod, ABC):
    """A loss on the student's own features."""

    @abstractmethod
    def build(self, alone: Alone) -> SelfFeatureLoss:
        """The loss for one network; random weights come from torch's generator, which the caller seeds.

        Raises:
            ModelError: the network lacks the features that the method uses.
        """


Method = TeacherMethod | TeacherFreeMethod | FeatureMethod | SelfFeatureMethod
"""Every kind of method."""


def full_precision(logits: Tensor) -> Tensor:
    """Raise half-precision values to float32; exponentials of float16 and bfloat16 under- and overflow."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def cross_entropy(student: Logits, labels: Labels, label_smoothing: float = 0.0) -> Scalar:
    """Mean cross-entropy with the labels, smoothed towards the uniform distribution as torch does it."""
    student = full_precision(student)
    targets = labels.to(student.dtype) if labels.is_floating_point() else labels.long()
    return F.cross_entropy(student, targets, label_smoothing=label_smoothing)


def main_label(labels: Labels) -> Int64[Tensor, " B"]:
    """The class number of each row; of a mixed image that with the largest share, as the authors' code takes it."""
    return labels.argmax(dim=1) if labels.is_floating_point() else labels.long()


def shares(labels: Labels, like: Logits) -> Logits:
    """Each row's share of every class, one-hot for class numbers, in the type of `like`."""
    if labels.is_floating_point():
        return labels.to(like.dtype)
    return torch.zeros_like(like).scatter(1, labels.long().unsqueeze(1), 1.0)


def kl_divergence_per_sample(target_log_probabilities: Logits, log_probabilities: Logits) -> Tensor:
    """KL(target || distribution) of each row, shape (B,), from log-probabilities.

    The difference of the probabilities sums to zero. Adding it cancels the rounding of the two normalisers, which
    otherwise outweighs the divergence of distributions that a high temperature makes alike: 2e-5 of it in float32.
    """
    target, probabilities = target_log_probabilities.exp(), log_probabilities.exp()
    difference = target_log_probabilities - log_probabilities
    return (target * difference + (probabilities - target)).sum(dim=1)


def without_label(logits: Logits, labels: Int64[Tensor, " B"]) -> Tensor:
    """Delete each row's target column, shape (B, C-1).

    A gather, because adding minus infinity gives 0 * inf = NaN and a boolean mask breaks full-graph compilation.
    """
    num_classes = logits.shape[1]
    columns = torch.arange(num_classes - 1, device=logits.device).expand(logits.shape[0], -1)
    return logits.gather(1, columns + (columns >= labels.unsqueeze(1)))
