"""Whether two predictors compute the same function: the network, and the file exported from it.

Both are asked about the same inputs: stored pixels, or image files where the way from file to pixels is compared too
(compress/image_files.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from compress.errors import ParityError
from compress.settings import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Settings
from compress.types import ImageArray, LogitArray

BATCH_SIZES = (1, 2, 7, 32)
"""A file whose batch size is not really free fails on one of them. All inputs are compared, in batches of the last."""

Inputs = ImageArray | Sequence[bytes]
"""Images (N H W 3), or image files."""
Answers = Callable[[Any], LogitArray]
"""From inputs to logits; a Predictor is one."""


class Disagreement(Settings):
    """An input that is answered differently."""

    image: NonNegativeInt
    """Its place among the inputs."""
    expected: NonNegativeInt
    """The reference's class."""
    given: NonNegativeInt
    """The candidate's class."""
    margin: NonNegativeFloat
    """How far the reference's logit of its own class lies above its logit of the candidate's; 0 for an exact tie."""


class Parity(Settings):
    """How closely a candidate follows its reference."""

    num_images: PositiveInt
    batch_sizes: tuple[PositiveInt, ...]
    """Sizes of the batches that were compared; all inputs in batches of the last."""
    tolerance: PositiveFloat
    """Largest relative error that was allowed."""
    relative_error: NonNegativeFloat
    """Largest difference of a logit as a fraction of the largest reference logit."""
    absolute_error: NonNegativeFloat
    """Largest difference of a logit."""
    agreement: Fraction
    """Share of inputs with the same answer."""
    agreement_outside_ties: Fraction
    """The same without inputs whose two largest reference logits are equal: there, either answer is right."""
    disagreements: tuple[Disagreement, ...]
    """Inputs answered differently, the widest margin first. None is wider than twice `absolute_error`: vectors of
    logits that differ by at most e per class disagree only about classes less than 2e apart."""


def assert_parity(reference: Answers, candidate: Answers, inputs: Inputs, *, tolerance: float) -> Parity:
    """Compare two predictors on the first 1, 2, 7 and 32 inputs, and on all of them in batches of 32.

    The reference is asked in batches of 32 only.

    Raises:
        ParityError: a logit differs by more than `tolerance` times the largest reference logit, or is not finite.
    """
    if len(inputs) == 0:
        raise ValueError("parity needs at least one image")
    sizes = tuple(sorted({min(size, len(inputs)) for size in BATCH_SIZES}))
    expected = _in_batches(reference, inputs, size=sizes[-1], role="reference")
    scale = float(np.abs(expected).max())
    absolute_error = 0.0
    for size in sizes[:-1]:
        given = _answers(candidate, inputs[:size], role="candidate", first=0)
        absolute_error = max(absolute_error, _difference(given, expected[:size], tolerance, scale=scale, batch=size))
    given = _in_batches(candidate, inputs, size=sizes[-1], role="candidate")
    absolute_error = max(absolute_error, _difference(given, expected, tolerance, scale=scale, batch=sizes[-1]))
    return Parity(
        num_images=len(inputs),
        batch_sizes=sizes,
        tolerance=tolerance,
        relative_error=_relative(absolute_error, scale),
        absolute_error=absolute_error,
        **_agreement(expected, given),
    )


def disagreements(expected: LogitArray, given: LogitArray) -> tuple[Disagreement, ...]:
    """Rows with another largest logit, the widest margin first."""
    first, second = expected.argmax(axis=1), given.argmax(axis=1)
    found = [
        Disagreement(
            image=int(row),
            expected=int(first[row]),
            given=int(second[row]),
            margin=float(np.float64(expected[row, first[row]]) - expected[row, second[row]]),
        )
        for row in np.flatnonzero(first != second)
    ]
    return tuple(sorted(found, key=lambda each: (-each.margin, each.image)))


def _agreement(expected: LogitArray, given: LogitArray) -> dict[str, Any]:
    found = disagreements(expected, given)
    is_tied = _margins(expected) == 0
    num_decided = int((~is_tied).sum())
    num_wrong = sum(not is_tied[each.image] for each in found)
    return {
        "agreement": 1 - len(found) / len(expected),
        "agreement_outside_ties": 1 - num_wrong / num_decided if num_decided else 1.0,
        "disagreements": found,
    }


def _margins(logits: LogitArray) -> np.ndarray:
    """How far each row's largest logit is ahead of its second."""
    if logits.shape[1] < 2:
        return np.full(len(logits), np.inf)
    ordered = np.partition(logits.astype(np.float64), -2, axis=1)
    return ordered[:, -1] - ordered[:, -2]


def _in_batches(predict: Answers, inputs: Inputs, *, size: int, role: str) -> LogitArray:
    starts = range(0, len(inputs), size)
    return np.concatenate([_answers(predict, inputs[start : start + size], role=role, first=start) for start in starts])


def _answers(predict: Answers, inputs: Inputs, *, role: str, first: int) -> LogitArray:
    logits = predict(inputs)
    if logits.ndim != 2 or len(logits) != len(inputs):
        raise ParityError(
            f"the {role} answers {len(inputs)} images with shape {logits.shape}; export the network again"
        )
    infinite = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(infinite):
        raise ParityError(
            f"the {role}'s answer to image {first + infinite[0]} holds NaN or infinity in a batch of {len(inputs)}; "
            "its training diverged: train it again with a lower learning rate"
        )
    return logits


def _difference(given: np.ndarray, expected: np.ndarray, tolerance: float, *, scale: float, batch: int) -> float:
    """Largest difference of a logit; within the tolerance."""
    if given.shape != expected.shape:
        raise ParityError(
            f"the candidate answers {len(expected)} images with shape {given.shape}, the reference with "
            f"{expected.shape}; export the network again"
        )
    difference = np.abs(given.astype(np.float64) - expected)
    worst = float(difference.max())
    relative_error = _relative(worst, scale)
    if relative_error > tolerance:
        image, place = np.unravel_index(int(difference.argmax()), difference.shape)
        raise ParityError(
            f"network and exported file disagree: in a batch of {batch}, logit {place} of image {image} "
            f"differs by {worst:.3g}, which is {relative_error:.2g} of the largest logit ({scale:.3g}); allowed is "
            f"{tolerance:.2g}. About 1e-6 is rounding in float32: a larger error is a defect of the export, unless "
            "export.tolerance was set too low"
        )
    return worst


def _relative(difference: float, scale: float) -> float:
    # A network that answers all zeros has no scale; any difference from it is then beyond every tolerance.
    if difference == 0.0:
        return 0.0
    return difference / max(scale, float(np.finfo(np.float32).tiny))
