"""Whether two predictors compute the same function: the network, and the file exported from it."""

from __future__ import annotations

import numpy as np

from compress.errors import ParityError
from compress.evaluate import agreement
from compress.settings import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Settings
from compress.types import ImageArray, LogitArray, Predictor

BATCH_SIZES = (1, 2, 7)
"""Tried besides all images at once: a file whose batch size is not really free fails on one of them."""


class Parity(Settings):
    """How closely a candidate follows its reference."""

    num_images: PositiveInt
    batch_sizes: tuple[PositiveInt, ...]
    """Sizes of the batches that were compared, the last one with all images."""
    tolerance: PositiveFloat
    """Largest relative error that was allowed."""
    relative_error: NonNegativeFloat
    """Largest difference of a logit as a fraction of the largest reference logit."""
    absolute_error: NonNegativeFloat
    """Largest difference of a logit."""
    agreement: Fraction
    """Share of images with the same answer; below 1 only by ties."""
    ties: tuple[int, ...]
    """Images answered differently. Two vectors of logits that differ by at most e per class disagree only about
    classes that the reference itself sees less than 2e apart, so within the tolerance these are coin flips."""


def assert_parity(reference: Predictor, candidate: Predictor, images: ImageArray, *, tolerance: float) -> Parity:
    """Compare two predictors on the first 1, 2 and 7 images and on all of them.

    Raises:
        ParityError: a logit differs by more than `tolerance` times the largest reference logit, or is not finite.
    """
    if len(images) == 0:
        raise ValueError("parity needs at least one image")
    expected = _answers(reference, images, "reference")
    scale = float(np.abs(expected).max())
    sizes = tuple(sorted({min(size, len(images)) for size in (*BATCH_SIZES, len(images))}))
    absolute_error = 0.0
    given = expected
    for size in sizes:  # ends with all images
        given = _answers(candidate, images[:size], "candidate")
        if given.shape != expected[:size].shape:
            raise ParityError(
                f"the candidate answers {size} images with shape {given.shape}, the reference with "
                f"{expected[:size].shape}; export the network again"
            )
        difference = np.abs(given.astype(np.float64) - expected[:size])
        absolute_error = max(absolute_error, float(difference.max()))
        _refuse_beyond(tolerance, difference=difference, scale=scale)
    return Parity(
        num_images=len(images),
        batch_sizes=sizes,
        tolerance=tolerance,
        relative_error=_relative(absolute_error, scale),
        absolute_error=absolute_error,
        agreement=agreement(expected, given),
        ties=tuple(np.flatnonzero(expected.argmax(axis=1) != given.argmax(axis=1)).tolist()),
    )


def _answers(predict: Predictor, images: ImageArray, role: str) -> LogitArray:
    logits = predict(images)
    infinite = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(infinite):
        raise ParityError(
            f"the {role}'s answer to image {infinite[0]} holds NaN or infinity in a batch of {len(images)}; "
            "its training diverged: train it again with a lower learning rate"
        )
    return logits


def _refuse_beyond(tolerance: float, *, difference: np.ndarray, scale: float) -> None:
    worst = float(difference.max())
    relative_error = _relative(worst, scale)
    if relative_error > tolerance:
        image, place = np.unravel_index(int(difference.argmax()), difference.shape)
        raise ParityError(
            f"network and exported file disagree: in a batch of {len(difference)}, logit {place} of image {image} "
            f"differs by {worst:.3g}, which is {relative_error:.2g} of the largest logit ({scale:.3g}); allowed is "
            f"{tolerance:.2g}. About 1e-6 is rounding: a larger error is a defect of the export, unless "
            "export.tolerance was set too low"
        )


def _relative(difference: float, scale: float) -> float:
    # A network that answers all zeros has no scale; any difference from it is then beyond every tolerance.
    if difference == 0.0:
        return 0.0
    return difference / max(scale, float(np.finfo(np.float32).tiny))
