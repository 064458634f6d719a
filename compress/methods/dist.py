"""Distillation from a stronger teacher (DIST, NeurIPS 2022, arXiv 2205.10536; hunto/image_classification_sota,
commit 6f7a70a).

soft = tau^2 * (beta * (1 - mean over rows of rho) + gamma * (1 - mean over columns of rho)), hard = cross-entropy.
rho is Pearson's correlation of student and teacher probabilities at temperature tau: along a row over the classes
of one image, along a column over the images of the batch for one class. Its denominator carries 1e-8.

The column part is a statistic of the batch: its value depends on the batch size, it is a constant (tau^2 * gamma,
no gradient) for a batch of one. Several processes compute it on the whole batch, in the authors' code each on its part.
Where the student is exactly uniform the gradient is about 3e6, because only the 1e-8 bounds it.
The authors' trainer doubles the whole term: the defaults beta = gamma = 2 are the paper's setting, whereas the
authors' loss module alone has 1 and 1.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from compress.methods.base import TeacherMethod, full_precision
from compress.settings import NonNegativeFloat, PositiveFloat
from compress.types import Labels, Logits, Scalar

EPSILON = 1e-8
"""Added to the product of the norms, as the authors do."""


class DIST(TeacherMethod):
    """Match how the teacher ranks the classes of an image, and the images of a class."""

    name: Literal["dist"] = "dist"
    temperature: PositiveFloat = 4.0
    """Divides both logits before the softmax (tau); 4 on CIFAR-100, 1 on ImageNet."""
    beta: NonNegativeFloat = 2.0
    """Weight of the correlation over classes; 2 in the paper's runs."""
    gamma: NonNegativeFloat = 2.0
    """Weight of the correlation over the images of a batch; 2 in the paper's runs."""

    @property
    def compares_samples(self) -> bool:
        return True

    def soft(self, student: Logits, teacher: Logits, labels: Labels) -> Scalar:
        prediction = F.softmax(full_precision(student) / self.temperature, dim=1)
        target = F.softmax(full_precision(teacher.detach()) / self.temperature, dim=1)
        between_classes = 1 - pearson(prediction, target, dim=1).mean()
        between_images = 1 - pearson(prediction, target, dim=0).mean()
        return self.temperature**2 * (self.beta * between_classes + self.gamma * between_images)


def pearson(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """Correlation of two matrices along a dimension, which disappears; zero where one of them is constant."""
    first, second = centred(first, dim), centred(second, dim)
    return (first * second).sum(dim=dim) / (first.norm(dim=dim) * second.norm(dim=dim) + EPSILON)


def centred(values: Tensor, dim: int) -> Tensor:
    """The values without their mean along a dimension."""
    return values - values.mean(dim=dim, keepdim=True)
