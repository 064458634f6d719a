"""Answers of networks that are not there: random logits and features of the sizes asked for."""

from collections.abc import Callable

import numpy as np
import torch

from compress.methods.base import Alone, Pair, Samples, shapes_of
from compress.types import Answer, Features

NUM_CLASSES = 7
LABELS = np.arange(40, dtype=np.int64) % NUM_CLASSES
"""Of the train images."""


def answer(width: int, seed: int, *, batch: int = 5, dtype: torch.dtype = torch.float32) -> Answer:
    """Of a transformer with four blocks, a class token and 3x4 patches."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=generator).to(dtype)

    maps = tuple(draw(width, 3, 4) for _ in range(4))
    tokens = tuple(draw(width) for _ in range(4))
    return Answer(draw(NUM_CLASSES), Features(draw(width), maps, draw(width, 3, 4), tokens))


def tensors(one: Answer) -> list[torch.Tensor]:
    """All of an answer."""
    features = one.features
    return [one.logits, features.pooled, *features.maps, features.last_map, *features.class_tokens]


def changed(one: Answer, change: Callable[[torch.Tensor], torch.Tensor]) -> Answer:
    """The answer with a function applied to each of its tensors."""
    features = one.features
    return Answer(
        change(one.logits),
        Features(
            change(features.pooled),
            tuple(map(change, features.maps)),
            change(features.last_map),
            tuple(map(change, features.class_tokens)),
        ),
    )


def leaves(one: Answer) -> Answer:
    """The answer with tensors that collect gradients."""
    return changed(one, lambda tensor: tensor.detach().clone().requires_grad_())


def pair(student: Answer, teacher: Answer) -> Pair:
    """What a feature method is built for."""
    return Pair(shapes_of(student.features), shapes_of(teacher.features), LABELS, NUM_CLASSES)


def alone(student: Answer) -> Alone:
    """What a method without a teacher is built for."""
    return Alone(shapes_of(student.features), NUM_CLASSES)


def samples(*indices: int, epoch: int = 1) -> Samples:
    """A batch of these train images."""
    places = torch.tensor(indices)
    return Samples(torch.from_numpy(LABELS)[places], places, epoch)
