"""ITRD: the authors' numbers are in test_feature_methods.py; here what happens where their code has none."""

import math

import pytest
import torch

from compress.methods import ITRD
from compress.methods.base import Samples
from compress.methods.itrd import ITRDLoss, correlation_term, mutual_term
from compress.types import Answer, Features


def draw(num_rows: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, width, generator=generator, dtype=torch.float64).to(dtype)


def pooled(features: torch.Tensor) -> Answer:
    return Answer(features, Features(features, (), features[:, :, None, None]))


def soft(loss: ITRDLoss, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    indices = torch.arange(len(student))
    return loss.soft(pooled(student), pooled(teacher), Samples(indices, indices, 1))


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e4, -3.7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_constant_dimension_correlates_with_nothing(constant: float, dtype: torch.dtype, side: str) -> None:
    """Adding it to the others adds |0 - 1|^(2 alpha) = 1 inside the logarithm; 0.1 is not exact in any mean."""
    student, teacher = draw(48, 5, 0, dtype), draw(48, 5, 1, dtype)
    without = [0, 1, 3, 4]
    alone = correlation_term(student[:, without], teacher[:, without], 1.5)
    dead = torch.full((48,), constant, dtype=dtype)
    (student if side == "student" else teacher)[:, 2] = dead
    student.requires_grad_()
    both = correlation_term(student, teacher, 1.5)
    torch.testing.assert_close(2**both, 2**alone + 1)
    (gradient,) = torch.autograd.grad(both, student)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 10


def test_a_batch_of_one_is_finite_and_moves_nothing() -> None:
    student = draw(1, 5, 0).requires_grad_()
    term = correlation_term(student, draw(1, 5, 1), 1.01)
    assert term.item() == pytest.approx(math.log2(5))
    assert not torch.autograd.grad(term, student)[0].any()
    assert mutual_term(student, draw(1, 3, 1)).item() == pytest.approx(0.0)


def test_rows_of_zeros_are_finite() -> None:
    student, teacher = draw(6, 5, 0), draw(6, 4, 1)
    student[2] = 0.0
    teacher[4] = 0.0
    student.requires_grad_()
    term = mutual_term(student, teacher)
    (gradient,) = torch.autograd.grad(term, student)
    assert term.isfinite()
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 10
    assert mutual_term(torch.zeros(6, 5), torch.zeros(6, 4)) == 0


def test_a_small_but_real_deviation_is_standardised() -> None:
    """Not taken for rounding: a dimension in other units is the same dimension."""
    student, teacher = draw(16, 3, 0, torch.float32), draw(16, 3, 1, torch.float32)
    expected = correlation_term(student, teacher, 1.5)
    scaled = student * torch.tensor([1e-12, 1.0, 1e6]) + torch.tensor([0.0, 1e3, 0.0])
    torch.testing.assert_close(correlation_term(scaled, teacher, 1.5), expected, rtol=1e-3, atol=0)


def test_equal_features_are_at_the_minimum_of_the_correlation_term() -> None:
    """c = (B - 1)/B, because the sum is divided by B and the deviation by B - 1."""
    features = draw(10, 4, 0)
    assert correlation_term(features, features, 1.5).item() == pytest.approx(math.log2(4 * 0.1**3))


def test_the_layer_serves_the_mutual_term_only_where_widths_differ() -> None:
    for width, used in ((4, False), (5, True)):
        loss = ITRDLoss(ITRD(correlation_weight=0.0, mutual_weight=1.0), 4, width).double()
        soft(loss, draw(6, 4, 0), draw(6, width, 1)).backward()
        assert bool(loss.embedding.weight.grad.any()) == used


def test_weights_scale_their_terms() -> None:
    torch.manual_seed(0)
    loss = ITRDLoss(ITRD(), 4, 4).double()
    student, teacher = draw(6, 4, 0), draw(6, 4, 1)
    correlation = correlation_term(loss.embedding(student), teacher, 1.5)
    expected = 2 * correlation + mutual_term(student, teacher)
    torch.testing.assert_close(soft(loss, student, teacher), expected)
