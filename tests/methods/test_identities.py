"""Identities that tie the methods on logits to each other, and what is particular to one of them."""

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from compress.methods import (
    DIST,
    DKD,
    KD,
    NKD,
    TTM,
    WTTM,
    LabelSmoothing,
    LogitStandardization,
    TfKDReg,
    TfKDSelf,
    TfNKD,
)
from compress.methods.base import cross_entropy, kl_divergence_per_sample, shares, without_label
from compress.methods.wttm import power_sum
from tests.methods.test_methods import LABELS, assert_equal_terms, logits


def test_both_conventions_of_label_smoothing_agree_at_the_converted_share() -> None:
    others = LabelSmoothing(smoothing=0.12, convention="others")(logits(0), LABELS)
    uniform = LabelSmoothing(smoothing=0.12 * 7 / 6, convention="uniform")(logits(0), LABELS)
    assert_equal_terms(others, uniform)


def test_uniform_label_smoothing_is_that_of_torch() -> None:
    ours = LabelSmoothing(smoothing=0.2)(logits(0), LABELS).hard
    torch.testing.assert_close(ours, F.cross_entropy(logits(0), LABELS, label_smoothing=0.2), rtol=1e-12, atol=0)


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


def test_the_power_sum_of_large_logits_keeps_its_digits_in_float32() -> None:
    """As a difference of two sums near 500 it would lose 1e-5."""
    rows = torch.randn(64, 20, generator=torch.Generator().manual_seed(0)) + 500.0
    exact = power_sum(rows.double(), 0.5)
    torch.testing.assert_close(power_sum(rows, 0.5).double(), exact, rtol=2e-6, atol=0)


def non_target_of_nkd(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    with_it, without = (NKD(gamma=gamma, temperature=temperature) for gamma in (1.0, 0.0))
    return with_it.soft(student, teacher, LABELS) - without.soft(student, teacher, LABELS)


def moved_target(rows: torch.Tensor) -> torch.Tensor:
    return rows.scatter_add(1, LABELS.unsqueeze(1), torch.full((5, 1), 4.0, dtype=torch.float64))


def test_nkd_non_target_term_ignores_the_target_logit() -> None:
    student, teacher = logits(0), logits(1)
    before = non_target_of_nkd(student, teacher)
    torch.testing.assert_close(non_target_of_nkd(moved_target(student), teacher), before, rtol=1e-10, atol=0)


def test_dkd_other_classes_term_ignores_the_target_logit() -> None:
    method = DKD(alpha=0.0)
    before = method.soft(logits(0), logits(1), LABELS)
    after = method.soft(moved_target(logits(0)), moved_target(logits(1)), LABELS)
    torch.testing.assert_close(after, before, rtol=1e-12, atol=0)


def test_nkd_and_dkd_pull_the_other_classes_alike() -> None:
    student = logits(0).requires_grad_()
    (of_nkd,) = torch.autograd.grad(non_target_of_nkd(student, logits(1), temperature=3.0), student)
    (of_dkd,) = torch.autograd.grad(DKD(alpha=0.0, beta=1.0, temperature=3.0).soft(student, logits(1), LABELS), student)
    torch.testing.assert_close(of_nkd, of_dkd, rtol=1e-9, atol=1e-14)


def test_dkd_divides_kd_into_its_two_parts() -> None:
    """KL = TCKD + (1 - p_y) NCKD for each sample, arXiv 2203.08679."""
    student, teacher, label = logits(0)[:1], logits(1)[:1], LABELS[:1]
    rest = 1 - F.softmax(teacher / 2.0, dim=1)[0, label].item()
    kd = KD(temperature=2.0, soft_weight=1.0).soft(student, teacher, label)
    dkd = DKD(temperature=2.0, alpha=1.0, beta=rest).soft(student, teacher, label)
    torch.testing.assert_close(dkd, kd, rtol=1e-12, atol=0)


def test_dkd_grows_over_its_warm_up() -> None:
    assert [DKD().ramp(epoch) for epoch in (1, 10, 20, 21)] == [1 / 20, 0.5, 1.0, 1.0]
    assert DKD(warmup_epochs=1).ramp(1) == 1.0


def test_dist_between_images_is_a_constant_for_a_batch_of_one() -> None:
    method = DIST(temperature=2.0, beta=0.0, gamma=3.0)
    student = logits(0)[:1].requires_grad_()
    loss = method.soft(student, logits(1)[:1], LABELS[:1])
    assert loss.item() == pytest.approx(2.0**2 * 3.0)
    assert torch.autograd.grad(loss, student)[0].abs().max() == 0


def test_dist_stays_finite_for_a_uniform_student() -> None:
    student = torch.zeros(5, 7).requires_grad_()
    loss = DIST().soft(student, logits(1).float(), LABELS)
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_tf_nkd_is_cross_entropy_for_a_batch_of_one() -> None:
    loss = TfNKD()(logits(0)[:1], LABELS[:1])
    torch.testing.assert_close(loss.soft, loss.hard, rtol=1e-12, atol=0)


def test_tf_nkd_weights_an_image_by_its_neighbours() -> None:
    """The reason why it is no mean of its samples' losses."""
    whole = TfNKD()(logits(0), LABELS).soft
    one_by_one = [TfNKD()(logits(0)[[i]], LABELS[[i]]).soft for i in range(len(LABELS))]
    assert not torch.allclose(whole, torch.stack(one_by_one).mean(), rtol=1e-3)


def test_tf_nkd_gradient_holds_its_weights_constant() -> None:
    student = logits(0).requires_grad_()
    (gradient,) = torch.autograd.grad(TfNKD()(student, LABELS).soft, student)
    probabilities = F.softmax(logits(0), dim=1)
    of_label = probabilities.gather(1, LABELS.unsqueeze(1))
    weight = of_label + 1 - of_label.mean()
    torch.testing.assert_close(gradient, weight * (probabilities - F.one_hot(LABELS, 7)) / 5, rtol=1e-12, atol=1e-15)


def test_tf_nkd_takes_the_lowest_class_for_the_label_that_an_unmixed_image_lacks() -> None:
    """Its probability enters the mean that the mixed image's second label is compared with."""
    student = logits(0)[:2]
    labels = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.7, 0.0, 0.3, 0.0, 0.0, 0.0]])
    probabilities = F.softmax(student, dim=1)
    first, second = probabilities[[0, 1], [2, 1]], probabilities[[0, 1], [0, 3]]
    first_weight = first + torch.tensor([1.0, 0.7]) - first.mean()
    second_weight = torch.tensor([0.0, 1.0]) * (second + 0.3 - second.mean())
    expected = -(first_weight * first.log() + second_weight * second.log()).mean()
    torch.testing.assert_close(TfNKD()(student, labels).soft, expected, rtol=1e-6, atol=0)


def test_tf_kd_self_is_kd_with_a_share_for_each_class() -> None:
    tf_kd_self = TfKDSelf(alpha=0.9, temperature=6.0, multiplier=50.0)(logits(0), logits(1), LABELS)
    kd = KD(temperature=6.0, hard_weight=1 - 0.9, soft_weight=0.9 * 50.0 / 7)(logits(0), logits(1), LABELS)
    assert_equal_terms(tf_kd_self, kd)


@pytest.mark.parametrize(
    ("form", "num_classes", "correct_probability", "expected"),
    [
        ("code", 100, 0.99, (0.010502, 0.009995)),
        ("paper", 100, 0.99, (0.015741, 0.009942)),
        ("code", 10, 0.99, (0.1045, 0.0995)),
        ("paper", 10, 0.99, (0.135, 0.096)),
        ("paper", 10, 0.999, (0.149, 0.095)),  # as in the paper's figure 3
    ],
)
def test_tf_kd_reg_softens_its_virtual_teacher_as_published(
    form: str, num_classes: int, correct_probability: float, expected: tuple[float, float]
) -> None:
    method = TfKDReg.model_validate({"form": form, "temperature": 20, "correct_probability": correct_probability})
    target = method.log_target(F.one_hot(torch.tensor([1]), num_classes).double()).exp()[0]
    digits = len(str(expected[0])) - 2
    assert (round(target[1].item(), digits), round(target[0].item(), digits)) == expected


def test_tf_kd_reg_in_the_papers_form_is_kd_without_its_factor_from_the_virtual_teacher() -> None:
    labels = F.one_hot(LABELS, 7).double()
    teacher = (0.9 * labels + 0.1 / 6 * (1 - labels)).log()
    method = TfKDReg(form="paper", alpha=0.4, temperature=5.0, correct_probability=0.9, multiplier=5.0**2)
    kd = KD(temperature=5.0, hard_weight=0.6, soft_weight=0.4)(logits(0), teacher, LABELS)
    assert_equal_terms(method(logits(0), LABELS), kd)


def test_tf_kd_reg_in_the_codes_form_is_nearly_label_smoothing() -> None:
    """At its published setting for 100 classes, for which it is told to be."""
    student = logits(0, 100).requires_grad_()
    method = TfKDReg(form="code", alpha=0.1, temperature=20.0, multiplier=100.0)
    (ours,) = torch.autograd.grad(method(student, LABELS).total, student)
    (smoothed,) = torch.autograd.grad(LabelSmoothing(smoothing=0.1)(student, LABELS).hard, student)
    assert (ours - smoothed).abs().max() < 1e-3 * smoothed.abs().max()


def test_standardized_logits_have_no_scale() -> None:
    method = LogitStandardization(method=KD(temperature=2.0, soft_weight=9.0))
    before = method.soft(logits(0), logits(1), LABELS)
    after = method.soft(3.0 * logits(0) + 1.0, 0.2 * logits(1), LABELS)
    torch.testing.assert_close(after, before, rtol=1e-6, atol=0)  # the authors' 1e-7 is not scaled


def test_standardization_leaves_the_labels_term_and_the_warm_up_to_the_wrapped_method() -> None:
    wrapped = DKD(label_smoothing=0.1)
    method = LogitStandardization(method=wrapped)
    assert method.hard(logits(0), LABELS) == wrapped.hard(logits(0), LABELS)
    assert method.ramp(5) == wrapped.ramp(5) == 0.25


def test_standardization_refuses_a_label_smoothing_of_its_own() -> None:
    with pytest.raises(ValidationError, match=r"has no effect here; set method\.label_smoothing"):
        LogitStandardization(method=KD(), label_smoothing=0.1)


def test_standardization_stays_finite_for_equal_logits() -> None:
    student = torch.zeros(5, 7).requires_grad_()
    loss = LogitStandardization(method=KD()).soft(student, logits(1).float(), LABELS)
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_without_label_deletes_exactly_the_label_column() -> None:
    rows = torch.arange(8.0).reshape(2, 4)
    assert without_label(rows, torch.tensor([0, 2])).tolist() == [[1, 2, 3], [4, 5, 7]]


def test_shares_of_class_numbers_are_one_hot() -> None:
    assert torch.equal(shares(LABELS, logits(0)), F.one_hot(LABELS, 7).double())


def test_smoothing_a_mixed_label_equals_smoothing_its_parts() -> None:
    mixed = 0.3 * F.one_hot(LABELS, 7) + 0.7 * F.one_hot(LABELS.flip(0), 7)
    parts = [cross_entropy(logits(0), labels, 0.1) for labels in (LABELS, LABELS.flip(0))]
    together = cross_entropy(logits(0), mixed, 0.1)
    torch.testing.assert_close(together, 0.3 * parts[0] + 0.7 * parts[1], rtol=1e-6, atol=0)  # shares in float32


@pytest.mark.parametrize("shape", [(4, 5), (16, 100)])
def test_divergences_of_nearly_equal_distributions_keep_their_digits_in_float32(shape: tuple[int, int]) -> None:
    """Summed naively they lose up to 9e-5 at a temperature of 40."""
    worst = 0.0
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        pair = [torch.randn(shape, generator=generator) * 2 / 40 for _ in range(2)]
        in_float32, exact = (
            kl_divergence_per_sample(*(F.log_softmax(rows.to(dtype), dim=1) for rows in pair)).mean().item()
            for dtype in (torch.float32, torch.float64)
        )
        worst = max(worst, abs(in_float32 - exact) / exact)
    assert worst < 2e-5
