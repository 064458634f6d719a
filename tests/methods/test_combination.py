"""A combination is the sum of its parts, and what labels say counts once."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch.nn import functional as F

from compress.methods import CRD, DKD, ITRD, KD, WTTM, Combination, Composed, LogitStandardization, TeacherMethod, ViTKD
from compress.methods.feature_methods import SingleFeatureMethod
from tests.methods.answers import answer, pair, samples

STUDENT, TEACHER = answer(6, 0), answer(8, 1)
BATCH = samples(3, 39, 0, 17, 8)
CONTRAST = CRD(num_negatives=9, embedding_size=4)


def run(method: Combination | SingleFeatureMethod, epoch: int = 1) -> tuple[float, float]:
    """Hard and soft, from seeded layers and seeded draws."""
    torch.manual_seed(0)
    loss = method.build(pair(STUDENT, TEACHER))
    torch.manual_seed(1)
    terms = loss(STUDENT, TEACHER, BATCH._replace(epoch=epoch))
    return terms.hard.item(), terms.soft.item()


@pytest.mark.parametrize("logits", [WTTM(gamma=0.2, beta=4.0), KD(), LogitStandardization(method=KD(soft_weight=9.0))])
@pytest.mark.parametrize("companion", [CONTRAST, ITRD(alpha=1.01), ViTKD()], ids=lambda method: method.name)
def test_soft_is_the_sum_and_hard_that_of_the_logit_method(
    logits: TeacherMethod, companion: SingleFeatureMethod
) -> None:
    hard, soft = run(Combination.model_validate({"logits": logits, "features": [companion]}))
    of_logits = logits(STUDENT.logits, TEACHER.logits, BATCH.labels)
    assert hard == pytest.approx(of_logits.hard.item(), rel=1e-6)
    assert soft == pytest.approx(of_logits.soft.item() + run(companion)[1], rel=1e-6)


def test_wttm_with_crd_is_cross_entropy_and_both_losses_at_their_weights() -> None:
    cross_entropy = F.cross_entropy(STUDENT.logits, BATCH.labels).item()
    divergence = WTTM(gamma=0.2, beta=1.0).soft(STUDENT.logits, TEACHER.logits, BATCH.labels).item()
    contrast = run(CONTRAST.model_copy(update={"weight": 1.0}))[1]
    hard, soft = run(Combination(logits=WTTM(gamma=0.2, beta=4.0), features=(CONTRAST,)))
    assert hard + soft == pytest.approx(cross_entropy + 4.0 * divergence + 0.8 * contrast, rel=1e-6)


def test_several_companions_add_up() -> None:
    _, soft = run(Combination(logits=WTTM(beta=0.0), features=(ITRD(), ViTKD())))
    torch.manual_seed(0)
    parts = [method.build(pair(STUDENT, TEACHER)) for method in (ITRD(), ViTKD())]
    torch.manual_seed(1)
    expected = sum(part.soft(STUDENT, TEACHER, BATCH).item() for part in parts)
    assert soft == pytest.approx(expected, rel=1e-6)


def test_a_warm_up_slows_the_logit_method_alone() -> None:
    logits = DKD(warmup_epochs=20)
    companion = run(ITRD())[1]
    whole = logits.soft(STUDENT.logits, TEACHER.logits, BATCH.labels).item()
    for epoch, factor in ((1, 0.05), (10, 0.5), (20, 1.0), (200, 1.0)):
        _, soft = run(Combination(logits=logits, features=(ITRD(),)), epoch)
        assert soft == pytest.approx(factor * whole + companion, rel=1e-6)


def test_label_smoothing_is_the_logit_methods() -> None:
    smoothed = WTTM(label_smoothing=0.1)
    hard, _ = run(Combination(logits=smoothed, features=(ITRD(),)))
    assert hard == pytest.approx(smoothed.hard(STUDENT.logits, BATCH.labels).item())
    assert hard != pytest.approx(F.cross_entropy(STUDENT.logits, BATCH.labels).item())


def test_params_are_read_and_written_as_they_stand() -> None:
    adapter = TypeAdapter(Composed)
    values = {
        "name": "combination",
        "logits": {"name": "logit_standardization", "method": {"name": "kd"}},
        "features": [{"name": "crd", "weight": 0.8}, {"name": "vitkd"}],
    }
    method = adapter.validate_python(values)
    assert method == Combination(logits=LogitStandardization(method=KD()), features=(CRD(), ViTKD()))
    assert adapter.validate_json(method.model_dump_json()) == method


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": []}, "at least 1 item"),
        ({"features": [{"name": "crd"}, {"name": "itrd"}, {"name": "crd"}]}, "names crd more than once"),
        ({"features": [{"name": "combination"}]}, "'crd', 'itrd', 'vitkd'"),
        ({"features": [{"name": "kd"}]}, "'crd', 'itrd', 'vitkd'"),
        ({"logits": {"name": "crd"}}, "'wttm'.*'logit_standardization'"),
        ({"logits": {"name": "cross_entropy"}}, "'wttm'.*'logit_standardization'"),
    ],
)
def test_parts_in_the_wrong_place_are_refused(changes: dict[str, object], message: str) -> None:
    values = {"name": "combination", "logits": {"name": "wttm"}, "features": [{"name": "itrd"}], **changes}
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(Composed).validate_python(values)
