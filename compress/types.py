"""The values that cross borders between modules, with their shapes.

Shape legend: B batch, C classes, H height, W width, N images of a split, V views of one image, D features.
Images are RGB, uint8 in storage and in exported files (B H W 3), float32 in [0, 1] inside networks (B 3 H W).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int, Int64, UInt8
from torch import Tensor

Scalar = Float[Tensor, ""]
Logits = Float[Tensor, "B C"]
Labels = Int[Tensor, " B"] | Float[Tensor, "B C"]
"""Class numbers or, for mixed images, each row's share of every class."""
ByteImages = UInt8[Tensor, "B H W 3"]
FloatImages = Float[Tensor, "B 3 H W"]

ImageArray = UInt8[np.ndarray, "B H W 3"]
LabelArray = Int64[np.ndarray, " B"]
LogitArray = Float32[np.ndarray, "B C"]
IndexArray = Int64[np.ndarray, " B"]


class LossTerms(NamedTuple):
    """Loss of one batch in nats: a mean over the batch, each term already weighted."""

    hard: Scalar
    """What the labels say."""
    soft: Scalar
    """What the teacher, or the method in its place, says; zero where there is nothing."""

    @property
    def total(self) -> Scalar:
        """The value that training minimises."""
        return self.hard + self.soft


class Features(NamedTuple):
    """What a network knows on its way to the logits; for methods that distil more than logits."""

    pooled: Float[Tensor, "B D"]
    """The input of the last linear layer."""
    maps: tuple[Float[Tensor, "B _ _ _"], ...]
    """Spatial maps after the stem and each stage, or each block of a transformer; early to late, channels second."""
    last_map: Float[Tensor, "B _ _ _"]
    """The map that is pooled; behind the last normalisation, where `maps` is before it."""
    class_tokens: tuple[Float[Tensor, "B _"], ...] = ()
    """The class token after each block of a transformer; empty for networks without one."""


class Answer(NamedTuple):
    """What a network says of a batch of images, and how it came to it."""

    logits: Logits
    features: Features


@runtime_checkable
class Predictor(Protocol):
    """A classifier ready to answer: a torch module, an ONNX Runtime session of any precision, a function in a test."""

    def __call__(self, images: ImageArray, /) -> LogitArray:
        """Raw images in, logits out; the predictor normalises by itself."""
        ...
