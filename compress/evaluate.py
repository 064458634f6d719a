"""How good a classifier's answers are. Works on arrays alone, whatever computes the logits.

Everything is computed in float64 from logits, batch by batch; memory grows with the number of classes, not of images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from compress.errors import ModelError
from compress.settings import Fraction, NonNegativeFloat, PositiveInt, Settings
from compress.types import LabelArray, LogitArray, Predictor

# Without axis names: those would have to be the same in all batches, and the last one may be smaller.
ImagesAndLabels = tuple[UInt8[np.ndarray, "_ _ _ 3"], Int64[np.ndarray, " _"]]
LogitsAndLabels = tuple[Float32[np.ndarray, "_ _"], Int64[np.ndarray, " _"]]

NUM_BINS = 15
"""Of the calibration error: equal widths, as Guo et al. (arXiv 1706.04599) have it."""


class Scores(Settings):
    """What a classifier's answers are worth on labelled images."""

    num_images: PositiveInt
    accuracy_top1: Fraction
    """Share of images whose largest logit is the label's; of equal logits the first class counts."""
    accuracy_top5: Fraction | None
    """Share of images whose label is among the five largest logits; none with five classes or fewer, where it is 1."""
    negative_log_likelihood: NonNegativeFloat
    """Mean of -log p(label), in nats."""
    expected_calibration_error: Fraction
    """Mean distance of confidence from accuracy over 15 equal-width bins of the top class's probability."""
    per_class_accuracy: tuple[Fraction | None, ...]
    """Top-1 accuracy on the images of each class; none for a class without images."""
    confusion: tuple[tuple[int, ...], ...]
    """Number of images by label (row) and answer (column)."""


class Evaluation(NamedTuple):
    """Scores, and the answers they were computed from."""

    scores: Scores
    logits: LogitArray
    """Of all images, in their order."""


def evaluate(predict: Predictor, batches: Iterable[ImagesAndLabels], *, num_classes: int) -> Evaluation:
    """Ask a classifier about labelled images, and keep its logits (N C float32).

    Raises:
        ModelError: it has another number of classes, or answers with a logit that is no finite number.
    """
    kept: list[LogitArray] = []

    def answers() -> Iterator[LogitsAndLabels]:
        for images, labels in batches:
            kept.append(predict(images))
            yield kept[-1], labels

    scores = score(answers(), num_classes=num_classes)
    return Evaluation(scores, np.concatenate(kept))


def score(answers: Iterable[LogitsAndLabels], *, num_classes: int) -> Scores:
    """Scores of given logits, batch by batch.

    Raises:
        ModelError: the logits are of another number of classes, or one is no finite number.
        ValueError: there are no images, or labels that do not fit.
    """
    sums = _Sums(num_classes)
    for logits, labels in answers:
        sums.add_(logits, labels)
    if sums.num_images == 0:
        raise ValueError("no images to evaluate on")
    return sums.scores()


def agreement(first: LogitArray, second: LogitArray) -> float:
    """Share of images, in [0, 1], to which two classifiers give the same answer."""
    if first.shape != second.shape or len(first) == 0:
        raise ValueError(f"agreement needs the logits of the same images, got shapes {first.shape} and {second.shape}")
    return float(np.mean(first.argmax(axis=1) == second.argmax(axis=1)))


class _Sums:
    """What is known after some batches; scores are ratios of these."""

    def __init__(self, num_classes: int) -> None:
        self.num_images = 0
        self._num_in_top5 = 0
        self._negative_log_likelihood = 0.0
        self._confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
        # Per bin of confidence: images answered rightly, and the sum of confidences.
        self._right = np.zeros(NUM_BINS)
        self._confidence = np.zeros(NUM_BINS)

    def add_(self, logits: LogitArray, labels: LabelArray) -> None:
        self._check(logits, labels)
        log_probabilities = _log_softmax(logits)
        of_label = np.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0]
        answers = logits.argmax(axis=1)
        confidence = np.exp(log_probabilities.max(axis=1))
        bins = np.clip(np.ceil(confidence * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
        self.num_images += len(labels)
        self._num_in_top5 += int((_rank_of_label(logits, labels) < 5).sum())
        self._negative_log_likelihood -= float(of_label.sum())
        np.add.at(self._confusion, (labels, answers), 1)
        np.add.at(self._right, bins, answers == labels)
        np.add.at(self._confidence, bins, confidence)

    def scores(self) -> Scores:
        right, per_class = np.diag(self._confusion), self._confusion.sum(axis=1)
        error = float(np.abs(self._right - self._confidence).sum()) / self.num_images
        return Scores(
            num_images=self.num_images,
            accuracy_top1=int(right.sum()) / self.num_images,
            accuracy_top5=self._num_in_top5 / self.num_images if len(per_class) > 5 else None,
            # Rounding can leave -0.0 or a hair above 1.
            negative_log_likelihood=max(self._negative_log_likelihood / self.num_images, 0.0),
            expected_calibration_error=min(error, 1.0),
            per_class_accuracy=tuple(
                int(hits) / int(images) if images else None for hits, images in zip(right, per_class, strict=True)
            ),
            confusion=tuple(tuple(row) for row in self._confusion.tolist()),
        )

    def _check(self, logits: LogitArray, labels: LabelArray) -> None:
        num_classes = len(self._confusion)
        if logits.shape[1] != num_classes:
            raise ModelError(
                f"the model answers with {logits.shape[1]} logits, the data has {num_classes} classes; "
                "use a model trained on these classes"
            )
        if len(logits) != len(labels):
            raise ValueError(f"{len(logits)} rows of logits for {len(labels)} labels")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ValueError(f"labels {labels.min()}..{labels.max()} are not all in 0..{num_classes - 1}")
        infinite = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(infinite):
            raise ModelError(
                f"the model's answer to image {self.num_images + int(infinite[0])} holds NaN or infinity; "
                "its training diverged: train it again with a lower learning rate"
            )


def _log_softmax(logits: LogitArray) -> np.ndarray:
    """In float64; exponentials of numbers at most 0 cannot overflow."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _rank_of_label(logits: LogitArray, labels: LabelArray) -> np.ndarray:
    """Number of classes ahead of the label's, shape (B,); of equal logits the first class is ahead, as in argmax."""
    of_label = np.take_along_axis(logits, labels[:, None], axis=1)
    is_earlier = np.arange(logits.shape[1]) < labels[:, None]
    return ((logits > of_label) | ((logits == of_label) & is_earlier)).sum(axis=1)
