"""What every method on logits promises."""

import subprocess
import sys
from typing import Any, get_args

import pytest
import torch
from torch.nn import functional as F

from compress.methods import (
    DIST,
    DKD,
    KD,
    NKD,
    Composed,
    CrossEntropy,
    LabelSmoothing,
    LogitMethod,
    LogitStandardization,
    TeacherFreeMethod,
    TeacherMethod,
    TfKDReg,
    TfKDSelf,
    TfNKD,
    WithoutTeacher,
)
from compress.types import LossTerms


def members(union: Any) -> list[type[Any]]:
    """Classes of a discriminated union."""
    return list(get_args(get_args(union)[0])) or [union]


LOGIT_METHODS: list[type[TeacherMethod]] = members(LogitMethod)
WITH_TEACHER: list[TeacherMethod] = [
    *(method() for method in LOGIT_METHODS),
    *(LogitStandardization(method=method()) for method in LOGIT_METHODS),
]
WITHOUT_TEACHER: list[TeacherFreeMethod] = [
    *(method() for method in members(WithoutTeacher) if issubclass(method, TeacherFreeMethod)),
    LabelSmoothing(convention="others"),
    TfKDReg(form="paper"),
]
EVERY_METHOD = [*WITH_TEACHER, *WITHOUT_TEACHER]
LABELS = torch.tensor([0, 3, 6, 2, 2])


def wrapped(method: TeacherMethod) -> TeacherMethod:
    return method.method if isinstance(method, LogitStandardization) else method


def title(method: Any) -> str:
    variant = "".join(f"-{getattr(method, key)}" for key in ("form", "convention") if hasattr(method, key))
    return method.name + variant + (f"-{method.method.name}" if isinstance(method, LogitStandardization) else "")


def every(methods: list[Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("method", methods, ids=title)


def logits(seed: int, num_classes: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, num_classes, generator=generator, dtype=torch.float64) * 3


def terms(
    method: TeacherMethod | TeacherFreeMethod, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor
) -> LossTerms:
    return method(student, teacher, labels) if isinstance(method, TeacherMethod) else method(student, labels)


def assert_equal_terms(actual: LossTerms, expected: LossTerms, rtol: float = 1e-12) -> None:
    torch.testing.assert_close(torch.stack(actual), torch.stack(expected), rtol=rtol, atol=1e-14)


@pytest.mark.parametrize("method", [*LOGIT_METHODS, *members(WithoutTeacher), *members(Composed)])
def test_a_method_lives_in_the_file_that_carries_its_name(method: type[TeacherMethod]) -> None:
    name = method.model_fields["name"].default
    assert method.__module__ == f"compress.methods.{name}"


@every(EVERY_METHOD)
class TestEveryMethod:
    def test_shifting_logits_by_a_constant_changes_nothing(self, method: TeacherMethod) -> None:
        before = terms(method, logits(0), logits(1), LABELS)
        assert_equal_terms(terms(method, logits(0) + 5.0, logits(1) - 3.0, LABELS), before)

    def test_the_order_of_classes_is_irrelevant(self, method: TeacherMethod) -> None:
        order = torch.tensor([4, 0, 6, 1, 3, 2, 5])
        before = terms(method, logits(0), logits(1), LABELS)
        after = terms(method, logits(0)[:, order], logits(1)[:, order], torch.argsort(order)[LABELS])
        assert_equal_terms(after, before)

    def test_the_order_of_samples_is_irrelevant(self, method: TeacherMethod) -> None:
        before = terms(method, logits(0), logits(1), LABELS)
        assert_equal_terms(terms(method, logits(0).flip(0), logits(1).flip(0), LABELS.flip(0)), before)

    def test_one_hot_shares_count_as_class_numbers(self, method: TeacherMethod) -> None:
        one_hot = F.one_hot(LABELS, 7).float()
        numbers = terms(method, logits(0), logits(1), LABELS)
        assert_equal_terms(terms(method, logits(0), logits(1), one_hot), numbers)
        assert_equal_terms(terms(method, logits(0), logits(1), LABELS.int()), numbers)

    @pytest.mark.parametrize("scale", [1.0, 50.0, 500.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_no_floating_type_loses_more_than_its_own_rounding(
        self, method: TeacherMethod, dtype: torch.dtype, scale: float
    ) -> None:
        """The float64 value at the rounded logits is what a loss can and must give."""
        student, teacher = (rows.clamp(-4, 4).mul(scale / 4).to(dtype) for rows in (logits(0), logits(1)))
        student.requires_grad_()
        loss = terms(method, student, teacher, LABELS)
        exact = terms(method, student.detach().double(), teacher.double(), LABELS)
        assert loss.total.dtype == torch.float32
        assert loss.total.item() == pytest.approx(exact.total.item(), rel=2e-5)
        assert torch.autograd.grad(loss.total, student)[0].isfinite().all()

    def test_settings_survive_a_file(self, method: TeacherMethod) -> None:
        assert type(method).model_validate_json(method.model_dump_json()) == method


@every([method for method in EVERY_METHOD if not isinstance(method, TfNKD)])
def test_autograd_agrees_with_finite_differences(method: TeacherMethod | TeacherFreeMethod) -> None:
    """TfNKD apart, whose weights depend on the student, but are constants for the gradient."""
    student = logits(0).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: terms(method, z, logits(1), LABELS).total, (student,))


@every(WITH_TEACHER)
class TestEveryMethodWithTeacher:
    def test_no_gradient_reaches_the_teacher(self, method: TeacherMethod) -> None:
        teacher = logits(1).requires_grad_()
        method(logits(0).requires_grad_(), teacher, LABELS).total.backward()
        assert teacher.grad is None

    def test_the_loss_is_the_mean_of_the_samples_losses(self, method: TeacherMethod) -> None:
        whole = method(logits(0), logits(1), LABELS).total
        one_by_one = [method(logits(0)[[i]], logits(1)[[i]], LABELS[[i]]).total for i in range(len(LABELS))]
        if isinstance(wrapped(method), DIST):  # it correlates over the images of a batch
            assert not torch.allclose(whole, torch.stack(one_by_one).mean(), rtol=1e-3)
        else:
            torch.testing.assert_close(whole, torch.stack(one_by_one).mean(), rtol=1e-12, atol=0)

    def test_its_terms_can_be_asked_for_separately(self, method: TeacherMethod) -> None:
        whole = method(logits(0), logits(1), LABELS)
        assert whole.hard == method.hard(logits(0), LABELS)
        assert whole.soft == method.soft(logits(0), logits(1), LABELS)

    def test_the_soft_term_rests_where_student_and_teacher_agree_if_it_tempers_both(
        self, method: TeacherMethod
    ) -> None:
        """TTM and WTTM do not temper the student, and NKD pulls towards the label besides."""
        student = logits(1).requires_grad_()
        (gradient,) = torch.autograd.grad(method.soft(student, logits(1), LABELS), student)
        at_rest = isinstance(wrapped(method), KD | DKD | DIST | TfKDSelf)
        assert (gradient.abs().max() < 1e-4) == at_rest  # DIST is bounded by its 1e-8 only


@pytest.mark.parametrize("method", LOGIT_METHODS)
def test_label_smoothing_changes_the_hard_term_only(method: type[TeacherMethod]) -> None:
    plain = method()(logits(0), logits(1), LABELS)
    smoothed = method(label_smoothing=0.1)(logits(0), logits(1), LABELS)
    assert smoothed.soft == plain.soft
    assert smoothed.hard != plain.hard


@every([CrossEntropy(), LabelSmoothing(), LabelSmoothing(convention="others"), TfKDReg(alpha=0.0), KD(soft_weight=0.0)])
def test_the_loss_of_a_mixed_label_is_the_mixture_of_the_losses(method: TeacherMethod | TeacherFreeMethod) -> None:
    first, second, share = F.one_hot(LABELS, 7).double(), F.one_hot(LABELS.flip(0), 7).double(), 0.3
    losses = [terms(method, logits(0), logits(1), labels).total for labels in (first, second)]
    mixed = terms(method, logits(0), logits(1), share * first + (1 - share) * second).total
    torch.testing.assert_close(mixed, share * losses[0] + (1 - share) * losses[1], rtol=1e-12, atol=0)


@every([NKD(), DKD()])
def test_a_mixed_image_counts_as_its_main_label(method: TeacherMethod) -> None:
    mixed = 0.6 * F.one_hot(LABELS, 7) + 0.4 * F.one_hot((LABELS + 1) % 7, 7)
    by_number = method.soft(logits(0), logits(1), LABELS)
    torch.testing.assert_close(method.soft(logits(0), logits(1), mixed), by_number, rtol=1e-12, atol=0)


@every([CrossEntropy(), LabelSmoothing()])
def test_plain_losses_have_no_soft_term(method: TeacherFreeMethod) -> None:
    assert method(logits(0), LABELS).soft == 0


COMPILE_ALL = """
import torch
from tests.methods.test_methods import LABELS, WITH_TEACHER, WITHOUT_TEACHER, logits, terms

torch.set_num_threads(1)
methods = [*{type(method): method for method in WITH_TEACHER}.values(), *WITHOUT_TEACHER]

def losses(student, teacher, labels):
    return torch.stack([terms(method, student, teacher, labels).total for method in methods])

compiled = torch.compile(losses, fullgraph=True, backend="aot_eager")
for labels in (LABELS, torch.softmax(logits(2), dim=1)):
    student = logits(0).requires_grad_()
    results = [function(student, logits(1), labels) for function in (compiled, losses)]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*(torch.autograd.grad(result.sum(), student)[0] for result in results))
"""


def test_losses_compile_into_one_graph() -> None:
    """In a process of its own: the shape checks of the test session cannot be traced."""
    subprocess.run([sys.executable, "-c", COMPILE_ALL], check=True)
