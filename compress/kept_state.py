"""Copies of what a training step changes: to put it back, and to compare two ways of taking the step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor, nn

from compress.training_state import TrainingState


@final
class Kept:
    """Copies of all tensors that a step changes."""

    def __init__(self, state: TrainingState) -> None:
        average: Iterable[Tensor] = () if state.average is None else _tensors(state.average.module)
        self._tensors = {
            "weights and buffers": list(_tensors(state.learner)),
            "optimiser's state": [
                value
                for values in state.optimizer.state.values()
                for value in values.values()
                if torch.is_tensor(value)
            ],
            "moving average": list(average),
        }
        self._copies = self.now()

    @torch.no_grad()
    def now(self) -> dict[str, list[Tensor]]:
        """Copies of the tensors as they are."""
        return {name: [each.clone() for each in tensors] for name, tensors in self._tensors.items()}

    @torch.no_grad()
    def restore_(self) -> None:
        """Put the values back into the same tensors, which a recording refers to."""
        for name, tensors in self._tensors.items():
            for tensor, copy in zip(tensors, self._copies[name], strict=True):
                tensor.copy_(copy)

    @torch.no_grad()
    def errors(self, expected: dict[str, list[Tensor]]) -> dict[str, float]:
        """By group, how far the tensors are from expected ones, relative to how far those are from the copies."""
        found: dict[str, float] = {}
        for name, tensors in self._tensors.items():
            error, size = _distance(tensors, expected[name]), _distance(self._copies[name], expected[name])
            found[name] = 0.0 if error == 0 else error / size if size > 0 else float("inf")
        return found


def _distance(first: list[Tensor], second: list[Tensor]) -> float:
    squares = [(one.double() - other.double()).square().sum() for one, other in zip(first, second, strict=True)]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
