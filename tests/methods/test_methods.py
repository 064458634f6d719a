"""What every method of the registry promises, and the identities that tie methods to each other."""

import subprocess
import sys
from typing import get_args

import pytest
import torch
from torch.nn import functional as F

from compress.methods import KD, NKD, TTM, WTTM, TeacherFreeMethod, TeacherMethod, WithoutTeacher, WithTeacher
from compress.methods.base import without_label
from compress.methods.wttm import power_sum

WITH_TEACHER: list[type[TeacherMethod]] = list(get_args(get_args(WithTeacher)[0]))
WITHOUT_TEACHER: list[type[TeacherFreeMethod]] = list(get_args(get_args(WithoutTeacher)[0]))
LABELS = torch.tensor([0, 3, 6, 2, 2])


def logits(seed: int, num_classes: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, num_classes, generator=generator, dtype=torch.float64) * 3


@pytest.mark.parametrize("method", [*WITH_TEACHER, *WITHOUT_TEACHER])
def test_a_method_lives_in_the_file_that_carries_its_name(method: type[TeacherMethod]) -> None:
    name = method.model_fields["name"].default
    assert method.__module__ == f"compress.methods.{name}"


@pytest.mark.parametrize("method", WITH_TEACHER)
class TestEveryMethodWithTeacher:
    def test_no_gradient_reaches_the_teacher(self, method: type[TeacherMethod]) -> None:
        teacher = logits(1).requires_grad_()
        method()(logits(0).requires_grad_(), teacher, LABELS).total.backward()
        assert teacher.grad is None

    def test_shifting_logits_by_a_constant_changes_nothing(self, method: type[TeacherMethod]) -> None:
        before = method()(logits(0), logits(1), LABELS)
        after = method()(logits(0) + 5.0, logits(1) - 3.0, LABELS)
        torch.testing.assert_close(torch.stack(after), torch.stack(before), rtol=1e-12, atol=0)

    def test_the_order_of_classes_is_irrelevant(self, method: type[TeacherMethod]) -> None:
        order = torch.tensor([4, 0, 6, 1, 3, 2, 5])
        before = method()(logits(0), logits(1), LABELS)
        after = method()(logits(0)[:, order], logits(1)[:, order], torch.argsort(order)[LABELS])
        torch.testing.assert_close(torch.stack(after), torch.stack(before), rtol=1e-12, atol=0)

    def test_the_loss_is_the_mean_of_the_samples_losses(self, method: type[TeacherMethod]) -> None:
        whole = method()(logits(0), logits(1), LABELS).total
        one_by_one = [method()(logits(0)[[i]], logits(1)[[i]], LABELS[[i]]).total for i in range(len(LABELS))]
        torch.testing.assert_close(whole, torch.stack(one_by_one).mean(), rtol=1e-12, atol=0)

    def test_autograd_agrees_with_finite_differences(self, method: type[TeacherMethod]) -> None:
        student = logits(0).requires_grad_()
        assert torch.autograd.gradcheck(lambda z: method()(z, logits(1), LABELS).total, (student,))

    def test_label_smoothing_changes_the_hard_term_only(self, method: type[TeacherMethod]) -> None:
        plain = method()(logits(0), logits(1), LABELS)
        smoothed = method(label_smoothing=0.1)(logits(0), logits(1), LABELS)
        assert smoothed.soft == plain.soft
        assert smoothed.hard != plain.hard


@pytest.mark.parametrize("method", WITHOUT_TEACHER)
def test_teacher_free_losses_have_no_soft_term(method: type[TeacherFreeMethod]) -> None:
    assert method()(logits(0), LABELS).soft == 0


def test_wttm_ttm_and_kd_agree_at_temperature_one() -> None:
    arguments = (logits(0), logits(1), LABELS)
    kd = KD(temperature=1.0, soft_weight=1.0)(*arguments).soft
    torch.testing.assert_close(TTM(gamma=1.0, beta=1.0)(*arguments).soft, kd, rtol=1e-12, atol=0)
    torch.testing.assert_close(WTTM(gamma=1.0, beta=1.0)(*arguments).soft, kd, rtol=1e-12, atol=0)


def test_ttm_is_kd_plus_a_renyi_entropy_regulariser() -> None:
    """KL(p_T||q) = T KL(p_T||q_T) - (T-1) H_{1/T}(q) + (T-1) H(p_T), arXiv 2402.11148."""
    temperature, student, teacher = 4.0, logits(0), logits(1)
    target = F.softmax(teacher / temperature, dim=1)
    entropy = -(target * target.log()).sum(dim=1).mean()
    renyi = (F.softmax(student, dim=1) ** (1 / temperature)).sum(dim=1).log().mean() / (1 - 1 / temperature)
    kd = KD(temperature=temperature, soft_weight=1.0)(student, teacher, LABELS).soft / temperature**2
    ttm = TTM(gamma=1 / temperature, beta=1.0)(student, teacher, LABELS).soft
    expected = temperature * kd - (temperature - 1) * renyi + (temperature - 1) * entropy
    torch.testing.assert_close(ttm, expected, rtol=1e-12, atol=0)


def test_the_power_sum_lies_between_certainty_and_uniformity() -> None:
    gamma, num_classes = 0.3, 7
    certain, uniform = torch.zeros(1, num_classes), torch.zeros(1, num_classes)
    certain[0, 2] = 1000.0
    assert power_sum(certain, gamma).item() == pytest.approx(1.0)
    assert power_sum(uniform, gamma).item() == pytest.approx(num_classes ** (1 - gamma))


def test_nkd_non_target_term_ignores_the_target_logit() -> None:
    student, teacher = logits(0), logits(1)
    moved = student.scatter_add(1, LABELS.unsqueeze(1), torch.full((5, 1), 4.0, dtype=torch.float64))

    def non_target(z: torch.Tensor) -> torch.Tensor:
        return NKD(gamma=1.0)(z, teacher, LABELS).soft - NKD(gamma=0.0)(z, teacher, LABELS).soft

    torch.testing.assert_close(non_target(moved), non_target(student), rtol=1e-10, atol=0)


def test_without_label_deletes_exactly_the_label_column() -> None:
    rows = torch.arange(8.0).reshape(2, 4)
    assert without_label(rows, torch.tensor([0, 2])).tolist() == [[1, 2, 3], [4, 5, 7]]


COMPILE_ALL = """
import torch
from typing import get_args
from compress.methods import WithTeacher, WithoutTeacher

student, teacher, labels = torch.randn(5, 7), torch.randn(5, 7), torch.tensor([0, 3, 6, 2, 2])
for method in get_args(get_args(WithTeacher)[0]):
    loss = method()
    compiled = torch.compile(lambda s, t, y: loss(s, t, y).total, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(student, teacher, labels), loss(student, teacher, labels).total)
for method in get_args(get_args(WithoutTeacher)[0]):
    loss = method()
    compiled = torch.compile(lambda s, y: loss(s, y).total, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(student, labels), loss(student, labels).total)
"""


def test_losses_compile_into_one_graph() -> None:
    """In a process of its own: the shape checks of the test session cannot be traced."""
    subprocess.run([sys.executable, "-c", COMPILE_ALL], check=True)
