"""What a distillation method is, and the arithmetic that several of them share.

Teacher logits are constants everywhere. Half-precision logits are raised to float32 before any exponential,
float64 is kept, and probabilities are only ever formed from log-softmax, so that no loss overflows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch.nn import functional as F

from compress.settings import Fraction, Settings
from compress.types import Labels, Logits, LossTerms, Scalar


class TeacherMethod(Settings, ABC):
    """A loss that compares student logits with a teacher's; its fields are the hyper-parameters."""

    label_smoothing: Fraction = 0.0
    """Share of the hard label spread evenly over all classes, in the hard term only."""

    @abstractmethod
    def __call__(self, student: Logits, teacher: Logits, labels: Labels) -> LossTerms:
        """Weighted hard and soft terms in nats, each a mean over the batch."""


class TeacherFreeMethod(Settings, ABC):
    """A loss that needs no teacher."""

    @abstractmethod
    def __call__(self, student: Logits, labels: Labels) -> LossTerms:
        """Weighted hard and soft terms in nats, each a mean over the batch."""


def full_precision(logits: Logits) -> Logits:
    """Raise half-precision logits to float32; exponentials of float16 and bfloat16 under- and overflow."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def cross_entropy(student: Logits, labels: Labels, label_smoothing: float = 0.0) -> Scalar:
    """Mean cross-entropy with the labels, smoothed towards the uniform distribution as torch does it."""
    return F.cross_entropy(full_precision(student), labels, label_smoothing=label_smoothing)


def kl_divergence_per_sample(target_log_probabilities: Logits, log_probabilities: Logits) -> torch.Tensor:
    """KL(target || distribution) of each row, shape (B,), from log-probabilities."""
    difference = target_log_probabilities - log_probabilities
    return (target_log_probabilities.exp() * difference).sum(dim=1)


def without_label(logits: Logits, labels: Labels) -> torch.Tensor:
    """Delete each row's target column, shape (B, C-1).

    A gather, because adding minus infinity gives 0 * inf = NaN and a boolean mask breaks full-graph compilation.
    """
    num_classes = logits.shape[1]
    columns = torch.arange(num_classes - 1, device=logits.device).expand(logits.shape[0], -1)
    return logits.gather(1, columns + (columns >= labels.unsqueeze(1)))
