"""What every place a network can come from has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import model_validator
from torch import Tensor

from compress.errors import ModelError
from compress.models.network import Backbone, Statistics
from compress.settings import Settings


class Created(NamedTuple):
    """A backbone and, where it came with pretrained weights, the pixel statistics these were trained with."""

    backbone: Backbone
    statistics: Statistics | None


class Source(Settings, ABC):
    """Settings of a network: its architecture, and where its weights come from (by default from chance)."""

    checkpoint: Path | None = None
    """Weights to load: a .safetensors, .pth, .pt or .bin file, or the folder of a model that this project saved."""
    statistics: Statistics | None = None
    """Mean and deviation to normalise with; by default those the weights bring along, otherwise those of the data."""
    classes: tuple[str, ...] | None = None
    """Class names in the order of the loaded weights' outputs, to be compared with those of the data."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The network's name in messages and tables."""

    @abstractmethod
    def weight_settings(self) -> tuple[str, ...]:
        """Names of the settings in force that say where weights come from; empty for weights from chance."""

    @abstractmethod
    def create(self, *, num_classes: int, image_size: tuple[int, int], replace_head: bool) -> Created:
        """The backbone with pretrained or random weights, but without `checkpoint`; random ones from torch's generator.

        Raises:
            ModelError: unknown name, image too small, pretrained weights out of reach or, unless `replace_head`,
                with another number of classes.
        """

    @abstractmethod
    def architecture(self) -> Source:
        """The same network without weights and file paths: what a model card keeps to rebuild it.

        Raises:
            ModelError: the architecture is described in a folder that cannot be read.
        """

    @property
    def brings_weights(self) -> bool:
        """Whether the network knows something before it is trained here."""
        return bool(self.weight_settings())

    @model_validator(mode="after")
    def _weights_come_from_one_place(self) -> Source:
        named = self.weight_settings()
        if len(named) > 1:
            raise ValueError(f"weights come from one place, but {' and '.join(named)} each name one; keep one of them")
        if self.classes is not None and not named:
            raise ValueError("classes names the outputs of loaded weights, but no weights are loaded; drop it")
        return self


def check_answers(backbone: Backbone, *, label: str, num_classes: int, image_size: tuple[int, int]) -> None:
    """Run a freshly built backbone on one blank image, and leave it in training mode.

    Raises:
        ModelError: it cannot take images of this size, or does not give one logit per class.
    """
    height, width = image_size
    backbone.eval()
    try:
        with torch.no_grad():
            logits: object = backbone(torch.zeros(1, 3, height, width))
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{label} cannot take images of {height}x{width} pixels ({reason}); set a size it takes or choose another "
            "network"
        ) from error
    backbone.train()
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (1, num_classes):
        answer = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"{label} answers one image with {answer}, not with {num_classes} logits; choose another network"
        )


def unknown_name(name: str, known: Sequence[str], *, library: str) -> ModelError:
    """The error for a name that a library does not have, with the names it probably meant."""
    close = get_close_matches(name, known, n=4, cutoff=0.5)
    advice = f"did you mean {', '.join(close)}?" if close else f"it has for example {', '.join(known[:4])}"
    return ModelError(f"{library} has no model {name!r}; {advice}")
