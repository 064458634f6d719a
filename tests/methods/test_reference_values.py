"""Each method equals the authors' own code, or a 60-digit evaluation where that code overflows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.methods import KD, NKD, TTM, WTTM, CrossEntropy, LabelSmoothing
from compress.types import LossTerms

REFERENCE = json.loads((Path(__file__).parent / "reference_values.json").read_text())
CASES = [case for case in REFERENCE["cases"] if case.get("flag") != "DO_NOT_MATCH"]
NEGATIVE_CONTROLS = [case for case in REFERENCE["cases"] if case.get("flag") == "DO_NOT_MATCH"]

Term = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def soft(method: Callable[..., LossTerms]) -> Term:
    return lambda student, teacher, labels: method(student, teacher, labels).soft


def hard(method: Callable[..., LossTerms]) -> Term:
    return lambda student, teacher, labels: method(student, labels).hard


def distillation_term(case: dict[str, Any]) -> Term:
    """The bare term the authors' module returns: our soft term at weight one."""
    hyper = case["hyper"]
    match case["method"], case["variant"]:
        case "CE", _:
            return hard(CrossEntropy())
        case "label_smoothing", "tfkd_code":
            return hard(LabelSmoothing(smoothing=hyper["epsilon"], convention="others"))
        case "label_smoothing", _:
            return hard(LabelSmoothing(smoothing=hyper["epsilon"], convention="uniform"))
        case "KD", _:
            return soft(KD(temperature=hyper["T"], soft_weight=1.0))
        case "TTM", _:
            return soft(TTM(gamma=hyper["gamma"], beta=1.0))
        case "WTTM", _:
            return soft(WTTM(gamma=hyper["gamma"], beta=1.0))
        case "NKD", _:
            return soft(NKD(temperature=hyper["T"], gamma=hyper["gamma"]))
    raise AssertionError(f"no method for {case['id']}")


def value_and_gradient(case: dict[str, Any], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = REFERENCE["inputs"][case["input"]]
    student = torch.tensor(inputs["student_logits"], dtype=torch.float64).to(dtype).requires_grad_()
    teacher = torch.tensor(inputs["teacher_logits"], dtype=torch.float64).to(dtype)
    loss = distillation_term(case)(student, teacher, torch.tensor(inputs["target"]))
    (gradient,) = torch.autograd.grad(loss, student)
    return loss, gradient


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_value_and_gradient_equal_the_authors_code(case: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    loss, gradient = value_and_gradient(case, dtype)
    assert loss.item() == pytest.approx(case["loss"], rel=tolerance)
    assert gradient.double().norm().item() == pytest.approx(case["grad_l2"], rel=tolerance)
    if case.get("grad"):  # written out for the small inputs only
        expected = torch.tensor(case["grad"], dtype=torch.float64)
        assert (gradient.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("case", NEGATIVE_CONTROLS, ids=lambda case: case["id"])
def test_the_release_that_kept_the_target_class_is_not_reproduced(case: dict[str, Any]) -> None:
    loss, _ = value_and_gradient(case, torch.float64)
    assert abs(loss.item() - case["loss"]) > 1e-3 * abs(case["loss"])


@pytest.mark.parametrize("case", REFERENCE["extreme_cases"], ids=lambda case: case["id"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_extreme_logits_give_the_exact_value(case: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    loss, gradient = value_and_gradient(case, dtype)
    assert loss.item() == pytest.approx(case["stable_value_mpmath"], rel=tolerance)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("case", REFERENCE["extreme_cases"], ids=lambda case: case["id"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_lose_nothing_but_their_own_rounding(case: dict[str, Any], dtype: torch.dtype) -> None:
    """The float64 value at the rounded logits is what a half-precision loss can and must give."""
    inputs = REFERENCE["inputs"][case["input"]]
    student, teacher = (torch.tensor(inputs[key]).to(dtype) for key in ("student_logits", "teacher_logits"))
    term, labels = distillation_term(case), torch.tensor(inputs["target"])
    student.requires_grad_()
    loss = term(student, teacher, labels)
    exact = term(student.detach().double(), teacher.double(), labels)
    assert loss.item() == pytest.approx(exact.item(), rel=2e-5)
    assert torch.autograd.grad(loss, student)[0].isfinite().all()
