"""What every loss on features promises, whatever it compares."""

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch.nn import functional as F

from compress.methods import CRD, ITRD, KD, USKD, WTTM, Combination, Composed, FeatureMethod, ViTKD, WithoutTeacher
from compress.methods.base import FeatureLoss, SelfFeatureMethod
from compress.methods.check_features import check_bonus
from compress.methods.feature_methods import SingleFeatureMethod
from tests.methods.answers import alone, answer, changed, leaves, pair, samples, tensors

BATCH = samples(3, 39, 0, 17, 8)
STUDENT, TEACHER = answer(6, 0), answer(8, 1)
METHODS: list[FeatureMethod] = [
    CRD(num_negatives=9, embedding_size=4),
    ITRD(),
    ViTKD(),
    Combination(logits=WTTM(), features=(CRD(num_negatives=9, embedding_size=4), ITRD(), ViTKD())),
]
REFERENCE = json.loads((Path(__file__).parent / "reference_values.json").read_text(encoding="utf-8"))

every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def members(union: Any) -> set[type[Any]]:
    return set(get_args(get_args(union)[0]))


def build(method: FeatureMethod, student: Any = STUDENT, seed: int = 0) -> FeatureLoss:
    torch.manual_seed(seed)
    return method.build(pair(student, TEACHER))


def run(loss: FeatureLoss, student: Any = STUDENT, teacher: Any = TEACHER, seed: int = 1) -> Any:
    torch.manual_seed(seed)
    return loss(student, teacher, BATCH)


def test_every_feature_method_of_the_registry_is_tested_here() -> None:
    assert {type(method) for method in METHODS} == {
        member for member in members(Composed) if issubclass(member, FeatureMethod)
    }
    assert members(SingleFeatureMethod) == members(Composed) & {type(method) for method in METHODS} - {Combination}
    assert {member for member in members(WithoutTeacher) if issubclass(member, SelfFeatureMethod)} == {USKD}


@every_method
class TestEveryMethod:
    def test_terms_are_finite_numbers_and_hard_is_the_cross_entropy(self, method: FeatureMethod) -> None:
        terms = run(build(method))
        assert terms.soft.shape == ()
        assert terms.soft.isfinite()
        torch.testing.assert_close(terms.hard, F.cross_entropy(STUDENT.logits, BATCH.labels))

    def test_no_gradient_reaches_the_teacher(self, method: FeatureMethod) -> None:
        teacher = leaves(TEACHER)
        run(build(method), leaves(STUDENT), teacher).total.backward()
        assert all(tensor.grad is None for tensor in tensors(teacher))

    def test_gradients_reach_the_student_and_every_layer_of_the_loss(self, method: FeatureMethod) -> None:
        student, loss = leaves(STUDENT), build(method)
        run(loss, student).soft.backward()
        assert any(tensor.grad is not None and bool(tensor.grad.any()) for tensor in tensors(student)[1:])
        for name, parameter in loss.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name

    def test_the_same_seed_gives_the_same_loss(self, method: FeatureMethod) -> None:
        first, again, other = (run(build(method, seed=seed)) for seed in (0, 0, 1))
        assert torch.equal(first.soft, again.soft)
        assert not torch.equal(first.soft, other.soft)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_loses_nothing_but_the_inputs_rounding(
        self, method: FeatureMethod, dtype: torch.dtype
    ) -> None:
        rounded = [changed(each, lambda tensor: tensor.to(dtype)) for each in (STUDENT, TEACHER)]
        exact = [changed(each, torch.Tensor.float) for each in rounded]
        half, full = run(build(method), *rounded), run(build(method), *exact)
        assert half.soft.dtype == torch.float32
        assert torch.equal(half.soft, full.soft)

    def test_autocast_around_the_loss_changes_nothing(self, method: FeatureMethod) -> None:
        expected = run(build(method))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(run(build(method)).soft, expected.soft)

    @pytest.mark.parametrize("scale", [0.0, 1e-30, 6e4])
    def test_extreme_features_give_finite_losses_and_gradients(self, method: FeatureMethod, scale: float) -> None:
        student, loss = leaves(changed(STUDENT, lambda tensor: tensor * scale)), build(method)
        terms = run(loss, student, changed(TEACHER, lambda tensor: tensor * scale))
        terms.total.backward()
        assert terms.total.isfinite()
        gradients = [each.grad for each in (*tensors(student), *loss.parameters()) if each.grad is not None]
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)

    def test_a_batch_of_one_gives_finite_losses_and_gradients(self, method: FeatureMethod) -> None:
        student, teacher = leaves(changed(STUDENT, lambda tensor: tensor[:1])), changed(TEACHER, lambda one: one[:1])
        terms = build(method)(student, teacher, samples(3))
        terms.total.backward()
        assert terms.total.isfinite()
        assert all(bool(each.grad.isfinite().all()) for each in tensors(student) if each.grad is not None)

    def test_shares_of_classes_are_taken_as_labels(self, method: FeatureMethod) -> None:
        shares = F.one_hot(BATCH.labels, 7).float()
        torch.manual_seed(1)
        torch.testing.assert_close(
            build(method)(STUDENT, TEACHER, BATCH._replace(labels=shares)).soft,
            build(method)(STUDENT, TEACHER, BATCH).soft,
        )

    def test_autograd_agrees_with_finite_differences(self, method: FeatureMethod) -> None:
        loss = build(method).double()
        student, teacher = (leaves(changed(each, torch.Tensor.double)) for each in (STUDENT, TEACHER))
        run(loss, student, teacher)
        loss.eval()  # memories and their normaliser stay as the first batch left them

        def soft(*inputs: torch.Tensor) -> torch.Tensor:
            given = iter(inputs)
            return run(loss, changed(student, lambda _: next(given)), teacher).soft

        assert torch.autograd.gradcheck(soft, tensors(student), fast_mode=True)

    def test_a_loss_continues_from_its_state_to_the_same_bits(self, method: FeatureMethod) -> None:
        uninterrupted = build(method)
        run(uninterrupted, seed=1)
        state = copy.deepcopy(uninterrupted.state_dict())
        resumed = build(method, seed=5)
        resumed.load_state_dict(state)
        for seed in (2, 3):
            expected, actual = run(uninterrupted, seed=seed), run(resumed, seed=seed)
            assert torch.equal(actual.soft, expected.soft)
        assert all(torch.equal(resumed.state_dict()[name], value) for name, value in uninterrupted.state_dict().items())


COMPILE_ALL = """
import torch
from compress.methods import USKD
from tests.methods.answers import alone
from tests.methods.test_feature_methods import BATCH, METHODS, STUDENT, TEACHER, build, run

combination = METHODS[-1]  # of all others
loss, twin = build(combination), build(combination)
compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
for seed in (1, 2):  # the second step meets the state that the first one left
    expected, actual = run(loss, seed=seed), run(compiled, seed=seed)
    torch.testing.assert_close(torch.stack(actual), torch.stack(expected))
    for terms in (expected, actual):
        terms.total.backward()
for one, other in zip(loss.parameters(), twin.parameters(), strict=True):
    torch.testing.assert_close(other.grad, one.grad)
for name, value in loss.state_dict().items():
    torch.testing.assert_close(twin.state_dict()[name], value)
loss = USKD().build(alone(STUDENT))
compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
for labels in (BATCH.labels, torch.softmax(TEACHER.logits, dim=1)):
    batch = BATCH._replace(labels=labels)
    torch.testing.assert_close(torch.stack(compiled(STUDENT, batch)), torch.stack(loss(STUDENT, batch)))
"""


def test_losses_compile_into_one_graph() -> None:
    """In a process of its own: the shape checks of the test session cannot be traced."""
    subprocess.run([sys.executable, "-c", COMPILE_ALL], check=True)


def test_values_and_gradients_equal_those_of_the_authors_code() -> None:
    kinds = check_bonus(REFERENCE["bonus"])
    assert {kind.name: kind.num_cases for kind in kinds} == {
        "CRD/features": 1,
        "ITRD/features": 2,
        "ViTKD/features": 1,
    }
    assert [kind.failures for kind in kinds] == [(), (), ()]
    for kind in kinds:
        assert kind.float64 is not None
        assert max(kind.float64.value, kind.float64.gradient or math.inf) < 1e-12


@pytest.mark.parametrize(
    ("method", "key"),
    [("CRD", "loss"), ("CRD", "Z_v2"), ("ITRD", "corr_loss"), ("ITRD", "mutual_loss"), ("ViTKD", "generation_term")],
)
def test_a_reference_value_that_is_off_is_found(method: str, key: str) -> None:
    content = copy.deepcopy(REFERENCE["bonus"][method])
    content[0][key] *= 1 + 1e-9
    ((first, *_),) = [kind.failures for kind in check_bonus({method: content})]
    assert f"{content[0]['id']}: the value of" in first


@pytest.mark.parametrize(("method", "key"), [("CRD", "grad_f_s"), ("ITRD", "corr_grad_f_s")])
def test_a_reference_gradient_that_is_off_is_found(method: str, key: str) -> None:
    content = copy.deepcopy(REFERENCE["bonus"][method])
    content[0][key][0][0] += 1e-8
    (kind,) = check_bonus({method: content})
    assert "the gradient of" in kind.failures[0]


def test_reference_instances_without_a_counterpart_are_failures() -> None:
    kinds = check_bonus(
        {"SPKD": [], "CRD": [{"id": "CRD/1"}], "ViTKD": [{**REFERENCE["bonus"]["ViTKD"][0], "params": {}}]}
    )
    assert ["not covered" in kind.failures[0] for kind in kinds] == [True, True, True]


def test_an_instance_whose_shapes_do_not_fit_is_a_failure() -> None:
    instance = copy.deepcopy(REFERENCE["bonus"]["ITRD"][0])
    instance["embed_bias"].append(0.0)
    (kind,) = check_bonus({"ITRD": [instance]})
    assert kind.failures[0].startswith("ITRD/6x4_same: not covered: ")


def test_a_logit_method_with_a_ramp_or_weights_keeps_them_in_a_combination() -> None:
    """The hard weight of KD holds: what the labels say is the logit method's to weigh."""
    method = Combination(logits=KD(hard_weight=0.1), features=(ITRD(),))
    assert run(build(method)).hard == pytest.approx(0.1 * F.cross_entropy(STUDENT.logits, BATCH.labels).item())


def test_uskd_needs_no_teacher() -> None:
    terms = USKD().build(alone(STUDENT))(STUDENT, BATCH)
    torch.testing.assert_close(terms.hard, F.cross_entropy(STUDENT.logits, BATCH.labels))
    assert terms.soft.isfinite()
