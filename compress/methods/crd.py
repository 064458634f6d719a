"""Contrastive representation distillation (CRD, ICLR 2020, arXiv 1910.10699; HobbitLong/RepDistiller, commit b84f547c).

Both pooled features go through a linear layer and are normalised: s and t, each of length 128. Two memories keep the
last embedding of every train image. An image's own entry in the other network's memory is its positive, entries of
`num_negatives` images of other classes are its negatives. With u = exp(<s, m> / temperature) / Z and c =
num_negatives / N for N train images, soft = weight * mean over the batch of
    -log(u+ / (u+ + c + 1e-7)) - sum over negatives of log(c / (u- + c + 1e-7)),
for the student against the teacher's memory plus for the teacher against the student's. Z, one for each direction, is
N times the mean score of the first batch and never changes again. After the forward pass the batch's entries become
the normalised mean (`momentum`) of themselves and the new embeddings. Hard = cross-entropy.

Memories and Z are buffers: they belong to the state of the training. Scores reach 1.6e6, too much for float16:
everything is float32, and computed from logarithms (u / (u + c) is a sigmoid), so that no temperature overflows.
Negatives are drawn anew for every image of every batch, without repetition where the other classes have enough images.
A mixed image has the class of its largest share. Several processes keep the same memories; upstream each has its own.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from compress.errors import ModelError
from compress.methods.base import FeatureLoss, FeatureMethod, Pair, Samples, main_label
from compress.settings import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from compress.types import Answer, Scalar

EPSILON = 1e-7
"""Added to both denominators, as the authors do."""


class CRD(FeatureMethod):
    """Bring an image's two embeddings together and push those of other classes away."""

    name: Literal["crd"] = "crd"
    weight: NonNegativeFloat = 0.8
    """Weight of the sum of both directions."""
    num_negatives: PositiveInt = 16384
    """Images of other classes that each image is contrasted with."""
    temperature: PositiveFloat = 0.07
    """Divides the inner products of embeddings."""
    momentum: Fraction = 0.5
    """Share of the old entry when a memory is updated."""
    embedding_size: PositiveInt = 128
    """Length of the embeddings that are compared."""

    @property
    def compares_samples(self) -> bool:
        return True

    def build(self, pair: Pair) -> CRDLoss:
        labels = torch.from_numpy(np.ascontiguousarray(pair.labels))
        _check_contrast(labels, pair.num_classes)
        sides = [_Side(width, len(labels), self) for width in (pair.student.pooled, pair.teacher.pooled)]
        return CRDLoss(self, sides[0], sides[1], _Others(labels, pair.num_classes))


class CRDLoss(FeatureLoss):
    """CRD for one pair of networks and one data set."""

    def __init__(self, method: CRD, student: _Side, teacher: _Side, others: _Others) -> None:
        super().__init__()
        self.method = method
        self.student = student
        self.teacher = teacher
        self.others = others

    def soft(self, student: Answer, teacher: Answer, samples: Samples) -> Scalar:
        negatives = self.others.draw(main_label(samples.labels), self.method.num_negatives)
        return self.contrast(student.features.pooled, teacher.features.pooled, samples.indices, negatives)

    def contrast(
        self,
        student: Float[Tensor, "B _"],
        teacher: Float[Tensor, "B _"],
        indices: Int64[Tensor, " B"],
        negatives: Int64[Tensor, "B K"],
    ) -> Scalar:
        """The weighted loss of pooled features against given negatives; updates the memories, while training."""
        with torch.autocast(student.device.type, enabled=False):
            candidates = torch.cat([indices.unsqueeze(1), negatives], dim=1)
            student_embedding = self.student.embed(student)
            teacher_embedding = self.teacher.embed(teacher.detach())
            loss = self.student.loss(student_embedding, self.teacher.memory, candidates)
            loss = loss + self.teacher.loss(teacher_embedding, self.student.memory, candidates)
            if self.training:
                self.student.remember_(student_embedding, indices)
                self.teacher.remember_(teacher_embedding, indices)
        return self.method.weight * loss


class _Side(nn.Module):
    """One network's embedding, the memory of it, and the Z of its scores against the other's memory."""

    memory: Tensor
    log_normaliser: Tensor

    def __init__(self, width: int, num_images: int, method: CRD) -> None:
        super().__init__()
        self.temperature = method.temperature
        self.momentum = method.momentum
        self.embedding = nn.Linear(width, method.embedding_size)
        bound = 1 / math.sqrt(method.embedding_size / 3)
        self.register_buffer("memory", torch.empty(num_images, method.embedding_size).uniform_(-bound, bound))
        # Minus infinity until the first batch.
        self.register_buffer("log_normaliser", torch.tensor(-math.inf))

    def embed(self, features: Float[Tensor, "B _"]) -> Float[Tensor, "B E"]:
        """Unit vectors in the layer's own precision."""
        return F.normalize(self.embedding(features.to(self.embedding.weight.dtype)), dim=1)

    def loss(
        self, embeddings: Float[Tensor, "B E"], memory: Float[Tensor, "N E"], candidates: Int64[Tensor, "B _"]
    ) -> Scalar:
        """Noise-contrastive loss of embeddings against entries of the other memory, the positive first."""
        num_images, num_candidates = len(memory), candidates.shape[1]
        # All products rather than the entries of all candidates: B N numbers instead of B K E.
        log_scores = (embeddings @ memory.T).gather(1, candidates) / self.temperature
        mean_score = log_scores.detach().flatten().logsumexp(0) - math.log(num_candidates * len(embeddings))
        log_normaliser = torch.where(
            self.log_normaliser.isinf(), mean_score + math.log(num_images), self.log_normaliser
        )
        if self.training:
            self.log_normaliser.copy_(log_normaliser)
        noise = (num_candidates - 1) / num_images
        log_odds = log_scores - log_normaliser - math.log(noise + EPSILON)
        positive = F.logsigmoid(log_odds[:, 0])
        negative = (F.logsigmoid(-log_odds[:, 1:]) + math.log(noise / (noise + EPSILON))).sum(dim=1)
        return -(positive + negative).mean()

    @torch.no_grad()
    def remember_(self, embeddings: Float[Tensor, "B E"], indices: Int64[Tensor, " B"]) -> None:
        """Move the entries of these images towards their new embeddings."""
        moved = self.momentum * self.memory[indices] + (1 - self.momentum) * embeddings
        # A new tensor, for the backward pass still needs the old entries.
        self.memory = self.memory.index_copy(0, indices, F.normalize(moved, dim=1))


class _Others(nn.Module):
    """Draws images of other classes."""

    labels: Tensor
    by_class: Tensor
    counts: Tensor
    starts: Tensor

    def __init__(self, labels: Int64[Tensor, " N"], num_classes: int) -> None:
        super().__init__()
        counts = labels.bincount(minlength=num_classes)
        self.fewest = len(labels) - int(counts.max())
        self.most = len(labels) - int(counts.min())
        # Not persistent: they follow from the data.
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("by_class", labels.argsort(stable=True), persistent=False)
        self.register_buffer("counts", counts, persistent=False)
        self.register_buffer("starts", counts.cumsum(0) - counts, persistent=False)

    def draw(self, classes: Int64[Tensor, " B"], num_drawn: int) -> Int64[Tensor, "B K"]:
        """Indices of images outside each class, all equally likely; repeated only where there are too few."""
        if num_drawn > self.most:
            return self._repeating(classes, num_drawn)
        distinct = self._distinct(classes, num_drawn)
        if num_drawn <= self.fewest:
            return distinct
        enough = len(self.labels) - self.counts[classes] >= num_drawn
        return torch.where(enough.unsqueeze(1), distinct, self._repeating(classes, num_drawn))

    def _distinct(self, classes: Int64[Tensor, " B"], num_drawn: int) -> Int64[Tensor, "B K"]:
        """The images with the smallest of independent random keys; those of the own class have larger ones."""
        keys = torch.rand(len(classes), len(self.labels), device=self.labels.device)
        keys = keys.masked_fill(self.labels == classes.unsqueeze(1), 2.0)
        return keys.topk(num_drawn, largest=False, sorted=False).indices

    def _repeating(self, classes: Int64[Tensor, " B"], num_drawn: int) -> Int64[Tensor, "B K"]:
        """Independent draws among all images in the order of their classes, past the block of the own class."""
        count, start = self.counts[classes].unsqueeze(1), self.starts[classes].unsqueeze(1)
        # A remainder of 62 random bits: its bias, below 1e-10, is the price of bounds that differ between rows.
        bits = torch.randint(2**62, (len(classes), num_drawn), device=self.labels.device)
        position = bits % (len(self.labels) - count)
        return self.by_class[torch.where(position < start, position, position + count)]


def _check_contrast(labels: Int64[Tensor, " N"], num_classes: int) -> None:
    """Raise ModelError unless every class has images of others to contrast with."""
    if int(labels.bincount(minlength=num_classes).max()) == len(labels):
        raise ModelError(
            f"crd contrasts images of different classes, but all {len(labels)} train images are of one; take data "
            "with several classes, or another method"
        )
