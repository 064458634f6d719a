"""Small instances of the feature losses that the authors' own code computed, and our side of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple, final

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor, nn

from compress.methods.base import FeatureShapes, Pair, Samples
from compress.methods.crd import CRD
from compress.methods.itrd import ITRD, ITRDLoss
from compress.methods.vectors.counterpart import NotCoveredError
from compress.methods.vectors.file import Record, Rows, as_tensor
from compress.methods.vectors.measure import relative_error
from compress.methods.vitkd import ViTKD, ViTKDLoss, all_but_smallest
from compress.types import Answer, Features


class Findings(NamedTuple):
    """Relative errors of one instance, by what they are of."""

    values: Mapping[str, float]
    gradients: Mapping[str, float]


class Instance(Record, ABC):
    """Inputs and layers of one loss, and what the authors' code returned for them."""

    id: str

    @abstractmethod
    def compare(self, dtype: torch.dtype) -> Findings:
        """Our loss in a floating type against theirs.

        Raises:
            NotCoveredError: our loss has no such form.
        """

    @abstractmethod
    def settings(self) -> str:
        """The hyper-parameters."""


class Linear(Record):
    """A linear layer."""

    weight: Rows
    bias: list[float]


@final
class CrdInstance(Instance):
    """The loss of one batch against given negatives, Z, and the memories afterwards."""

    f_s: Rows
    f_t: Rows
    embed_s: Linear
    embed_t: Linear
    memory_v1: Rows
    memory_v2: Rows
    index: list[int]
    contrast_idx: list[list[int]]
    nce_k: int
    nce_t: float
    nce_m: float
    loss: float
    grad_f_s: Rows
    Z_v1: float
    Z_v2: float
    memory_v1_row0_after: list[float]
    memory_v2_row0_after: list[float]

    def settings(self) -> str:
        return f"negatives {self.nce_k}, T {self.nce_t:g}, momentum {self.nce_m:g}"

    def compare(self, dtype: torch.dtype) -> Findings:
        indices, candidates = torch.tensor(self.index), torch.tensor(self.contrast_idx)
        if not torch.equal(candidates[:, 0], indices) or candidates.shape[1] != self.nce_k + 1:
            raise NotCoveredError("contrast_idx does not hold the image itself and nce_k others")
        student, teacher = as_tensor(self.f_s, dtype).requires_grad_(), as_tensor(self.f_t, dtype)
        method = CRD(
            weight=1.0,
            num_negatives=self.nce_k,
            temperature=self.nce_t,
            momentum=self.nce_m,
            embedding_size=len(self.embed_s.bias),
        )
        labels = np.arange(len(self.memory_v1)) % 2  # negatives are given, so that no class matters
        shapes = _only_pooled(student.shape[1]), _only_pooled(teacher.shape[1])
        ours = method.build(Pair(*shapes, labels, num_classes=2)).to(dtype)
        sides = (
            (ours.student, self.embed_s, self.memory_v1, self.Z_v1, self.memory_v1_row0_after),
            (ours.teacher, self.embed_t, self.memory_v2, self.Z_v2, self.memory_v2_row0_after),
        )
        for side, embed, memory, _, _ in sides:
            _fill_(side.embedding, embed)
            side.memory.copy_(as_tensor(memory, dtype))
        loss = ours.contrast(student, teacher, indices, candidates[:, 1:])
        values = {"loss": relative_error(loss.item(), self.loss)}
        for number, (side, _, _, normaliser, row) in enumerate(sides, start=1):
            values[f"Z_v{number}"] = relative_error(side.log_normaliser.exp().item(), normaliser)
            # Row 0 of the memory or that of the batch's first image: the name allows both.
            after = [_distance(side.memory[place], row) for place in (0, self.index[0])]
            values[f"memory_v{number}"] = min(after)
        return Findings(values, {"f_s": _gradient_error(loss, student, self.grad_f_s)})


@final
class ItrdInstance(Instance):
    """Both terms of one batch."""

    f_s: Rows
    f_t: Rows
    embed_weight: Rows
    embed_bias: list[float]
    alpha_it: float
    embed_used_in_mutual: bool
    corr_loss: float
    corr_grad_f_s: Rows
    mutual_loss: float
    mutual_grad_f_s: Rows

    def settings(self) -> str:
        return f"alpha {self.alpha_it:g}"

    def compare(self, dtype: torch.dtype) -> Findings:
        student, teacher = as_tensor(self.f_s, dtype).requires_grad_(), as_tensor(self.f_t, dtype)
        if self.embed_used_in_mutual != (student.shape[1] != teacher.shape[1]):
            raise NotCoveredError("our mutual term embeds the student exactly where the widths differ")
        expected = {
            "corr": (ITRD(correlation_weight=1, mutual_weight=0, alpha=self.alpha_it), self.corr_loss),
            "mutual": (ITRD(correlation_weight=0, mutual_weight=1, alpha=self.alpha_it), self.mutual_loss),
        }
        gradients = {"corr": self.corr_grad_f_s, "mutual": self.mutual_grad_f_s}
        values: dict[str, float] = {}
        errors: dict[str, float] = {}
        for name, (method, value) in expected.items():
            ours = ITRDLoss(method, student.shape[1], teacher.shape[1]).to(dtype)
            _fill_(ours.embedding, Linear(weight=self.embed_weight, bias=self.embed_bias))
            samples = Samples(torch.zeros(len(student), dtype=torch.long), torch.arange(len(student)), 1)
            loss = ours.soft(_pooled(student), _pooled(teacher), samples)
            values[name] = relative_error(loss.item(), value)
            errors[name] = _gradient_error(loss, student, gradients[name])
        return Findings(values, errors)


@final
class VitkdInstance(Instance):
    """Both terms of one batch under a given mask."""

    low_s: list[list[Rows]]
    low_t: list[list[Rows]]
    high_s: list[Rows]
    high_t: list[Rows]
    mask_noise: Rows
    params: dict[str, JsonValue]
    alpha_vitkd: float
    beta_vitkd: float
    lambda_vitkd: float
    loss: float
    mimic_term: float
    generation_term: float
    grad_low_s_l2: float
    grad_high_s_l2: float

    def settings(self) -> str:
        return f"alpha {self.alpha_vitkd:g}, beta {self.beta_vitkd:g}, lambda {self.lambda_vitkd:g}"

    def compare(self, dtype: torch.dtype) -> Findings:
        low, high = (_numbers(values, dtype).requires_grad_() for values in (self.low_s, self.high_s))
        low_teacher, high_teacher = (_numbers(values, dtype) for values in (self.low_t, self.high_t))
        method = ViTKD(mimic_weight=self.alpha_vitkd, generation_weight=self.beta_vitkd, masked_share=self.lambda_vitkd)
        ours = ViTKDLoss(method, high.shape[2], high_teacher.shape[2]).to(dtype)
        self._fill_(ours)
        student, teacher = _features_of_tokens(low, high), _features_of_tokens(low_teacher, high_teacher)
        noise = as_tensor(self.mask_noise)
        is_masked = all_but_smallest(noise, int(noise.shape[1] * (1 - self.lambda_vitkd)))
        mimicking = ours.mimicking(student, teacher)
        generating = ours.generating(student, teacher, is_masked.unflatten(1, student.last_map.shape[2:]))
        low_gradient, high_gradient = torch.autograd.grad(mimicking + generating, (low, high))
        values = {
            "mimic_term": relative_error(mimicking.item(), self.mimic_term),
            "generation_term": relative_error(generating.item(), self.generation_term),
            "loss": relative_error((mimicking + generating).item(), self.loss),
        }
        gradients = {
            "low_s": relative_error(low_gradient.norm().item(), self.grad_low_s_l2),
            "high_s": relative_error(high_gradient.norm().item(), self.grad_high_s_l2),
        }
        return Findings(values, gradients)

    def _fill_(self, ours: ViTKDLoss) -> None:
        """Put the authors' parameters, by their names, into our layers."""
        own: dict[str, Tensor] = {"mask_token": ours.mask_token}
        layers = {"align2.0": ours.shallow_aligns[0], "align2.1": ours.shallow_aligns[1], "align": ours.deep_align}
        layers |= {"generation.0": ours.generation[0], "generation.2": ours.generation[2]}
        for name, layer in layers.items():
            own |= {f"{name}.{key}": parameter for key, parameter in layer.named_parameters()}
        if alone := sorted(set(own) ^ set(self.params)):
            raise NotCoveredError(f"the parameters {', '.join(alone)} have no counterpart")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(_numbers(self.params[name], parameter.dtype).reshape(parameter.shape))


def _only_pooled(width: int) -> FeatureShapes:
    return FeatureShapes(pooled=width, maps=(), last_map=(width, 1, 1), class_tokens=())


def _pooled(features: Tensor) -> Answer:
    """An answer of which only the pooled feature matters."""
    return Answer(features.detach(), Features(features, (), features.detach()[:, :, None, None]))


def _features_of_tokens(low: Tensor, high: Tensor) -> Features:
    """Tokens (B 2 N D) and (B N D), on a square grid, as maps."""
    side = round(high.shape[1] ** 0.5)

    def as_map(tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, (side, side))

    return Features(high.mean(dim=1), (as_map(low[:, 0]), as_map(low[:, 1])), as_map(high))


def _numbers(values: object, dtype: torch.dtype) -> Tensor:
    """Nested lists, rounded once, from float64."""
    return torch.tensor(values, dtype=torch.float64).to(dtype)


def _fill_(layer: nn.Linear, numbers: Linear) -> None:
    with torch.no_grad():
        layer.weight.copy_(as_tensor(numbers.weight))
        layer.bias.copy_(as_tensor(numbers.bias))


def _distance(ours: Tensor, expected: Rows | list[float]) -> float:
    """Largest difference, relative to the largest number."""
    theirs = as_tensor(expected)
    largest = theirs.abs().max().item()
    return relative_error((ours.double() - theirs).abs().max().item() + largest, largest)


def _gradient_error(loss: Tensor, inputs: Tensor, expected: Rows) -> float:
    (gradient,) = torch.autograd.grad(loss, inputs)
    return _distance(gradient, expected)
