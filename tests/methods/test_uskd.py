"""USKD by hand, on mixed labels, and where in a network its weak branch begins. The authors' numbers are in
test_reference_values.py."""

import pytest
import torch
from torch.nn import functional as F

from compress.errors import ModelError
from compress.methods import USKD
from compress.methods.base import Alone, FeatureShapes
from compress.methods.uskd import non_target_term, uskd_terms
from tests.methods.answers import alone, answer, changed, leaves, samples

STUDENT = answer(6, 0)
BATCH = samples(3, 39, 0, 17, 8)
LABELS = torch.tensor([0, 3, 6, 2, 2])


def logits(seed: int) -> torch.Tensor:
    return 2 * torch.randn(5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_terms_by_hand() -> None:
    """One image, three classes, label 0."""
    student = torch.tensor([[2.0, 0.0, 1.0]], dtype=torch.float64)
    weak = torch.tensor([[0.0, 3.0, 0.0]], dtype=torch.float64)
    terms = uskd_terms(student, weak, torch.tensor([0]))
    log_q = student.log_softmax(dim=1)[0]
    assert terms.target.item() == pytest.approx(-log_q[0].item())  # w = s^2 + 1 - s^2
    # The ranking: .045/.955 + .665/.335 = 2.03, .909/.955 + .09/.335 = 1.22, .045/.955 + .245/.335 = 0.78.
    target = torch.tensor([1 / 2, 1 / 3], dtype=torch.float64)
    expected = -(target / target.sum() * student[0, 1:].log_softmax(dim=0)).sum()
    assert terms.non_target.item() == pytest.approx(expected.item())
    label = torch.tensor([0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3], dtype=torch.float64)
    assert terms.weak.item() == pytest.approx(-(label * weak[0].log_softmax(dim=0)).sum().item())


def test_certain_images_weigh_more_in_the_target_term() -> None:
    student = logits(0)
    q = F.softmax(student, dim=1).gather(1, LABELS.unsqueeze(1)).squeeze(1)
    weight = q**2 + 1 - (q**2).mean()
    assert weight.mean().item() == pytest.approx(1.0)
    torch.testing.assert_close(uskd_terms(student, logits(1), LABELS).target, -(weight * q.log()).mean())


def test_network_and_weak_branch_rank_the_classes_by_their_probabilities() -> None:
    """By logarithms, as in the code released since 2023-07-17, the weak branch would hardly matter."""
    student, weak, label_column = logits(0), logits(1), LABELS.unsqueeze(1)
    score = torch.zeros_like(student)
    for probability in (F.softmax(student, dim=1), F.softmax(weak, dim=1)):
        score += probability / (1 - probability.gather(1, label_column) + 1e-6)
    losses = []
    for row, scores, label in zip(student, score, LABELS.tolist(), strict=True):
        ranked = scores.argsort(descending=True).tolist()
        zipf = torch.tensor([1 / (1 + ranked.index(k)) for k in range(7) if k != label], dtype=torch.float64)
        others = torch.stack([row[k] for k in range(7) if k != label])
        losses.append(-(zipf / zipf.sum() * others.log_softmax(dim=0)).sum())
    torch.testing.assert_close(uskd_terms(student, weak, LABELS).non_target, torch.stack(losses).mean())


def test_the_weight_of_a_label_is_centred_over_the_images_that_have_one() -> None:
    """The weights of the second labels of mixed images then add up to their shares."""
    shares = torch.zeros(5, 7, dtype=torch.float64)
    shares[0, [1, 2]] = torch.tensor([0.6, 0.4], dtype=torch.float64)
    shares[1, [5, 0]] = torch.tensor([0.8, 0.2], dtype=torch.float64)
    shares[[2, 3, 4], [6, 2, 3]] = 1.0
    student = logits(0)
    q = F.softmax(student, dim=1)
    first, second = q[range(5), [1, 5, 6, 2, 3]], q[[0, 1], [2, 0]]
    weight = first**2 + torch.tensor([0.6, 0.8, 1.0, 1.0, 1.0], dtype=torch.float64) - (first**2).mean()
    of_second = second**2 + torch.tensor([0.4, 0.2], dtype=torch.float64) - (second**2).mean()
    expected = -((weight * first.log()).sum() + (of_second * second.log()).sum()) / 5
    torch.testing.assert_close(uskd_terms(student, logits(1), shares).target, expected)


def test_weights_and_ranks_are_constants() -> None:
    """The gradient is that of the cross-entropies with these targets; the weak branch learns from labels alone."""
    student, weak = logits(0).requires_grad_(), logits(1).requires_grad_()
    terms = uskd_terms(student, weak, LABELS)
    of_target = torch.autograd.grad(terms.target, student, retain_graph=True)[0]
    q = F.softmax(student.detach(), dim=1)
    of_label = q.gather(1, LABELS.unsqueeze(1))
    weight = of_label**2 + 1 - (of_label**2).mean()
    torch.testing.assert_close(of_target, weight * (q - F.one_hot(LABELS, 7)) / 5)
    assert torch.autograd.grad(terms.non_target, weak, retain_graph=True, allow_unused=True)[0] is None
    of_weak = torch.autograd.grad(terms.weak, weak)[0]
    smoothed = 0.9 * F.one_hot(LABELS, 7) + 0.1 / 7
    torch.testing.assert_close(of_weak, (F.softmax(weak.detach(), dim=1) - smoothed) / 5)


def test_the_non_target_term_ignores_the_labels_logits() -> None:
    is_label = F.one_hot(LABELS, 7).bool()
    student = logits(0)
    expected = non_target_term(student, logits(1), is_label)
    moved = student + 50.0 * is_label
    torch.testing.assert_close(non_target_term(moved, logits(1), is_label), expected)


def test_one_hot_shares_are_class_numbers() -> None:
    """No second class takes part, whichever of share zero a sort would find."""
    shares = F.one_hot(LABELS, 7).double()
    expected, actual = (uskd_terms(logits(0), logits(1), labels) for labels in (LABELS, shares))
    torch.testing.assert_close(torch.stack(actual), torch.stack(expected))


def test_an_unmixed_image_among_mixed_ones_has_one_label() -> None:
    shares = 0.7 * F.one_hot(LABELS, 7).double() + 0.3 * F.one_hot(LABELS.flip(0), 7).double()
    assert (shares[2] > 0).sum() == 1  # the middle of the batch is its own partner
    order = torch.tensor([0, 6, 5, 4, 3, 2, 1])  # a sort breaks ties by position
    renumbered = [each[:, order] for each in (logits(0), logits(1), shares)]
    expected, actual = uskd_terms(logits(0), logits(1), shares), uskd_terms(*renumbered)
    torch.testing.assert_close(torch.stack(actual), torch.stack(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 30.0, 500.0])
@pytest.mark.parametrize("mixed", [False, True])
def test_extreme_logits_give_finite_losses_and_gradients(dtype: torch.dtype, scale: float, mixed: bool) -> None:
    labels = 0.7 * F.one_hot(LABELS, 7) + 0.3 * F.one_hot(LABELS.flip(0), 7) if mixed else LABELS
    student, weak = ((scale * logits(seed)).to(dtype).requires_grad_() for seed in (0, 1))
    total = torch.stack(uskd_terms(student, weak, labels)).sum()
    total.backward()
    assert total.isfinite()
    assert student.grad.isfinite().all()
    assert weak.grad.isfinite().all()


def test_autograd_agrees_with_finite_differences_where_nothing_is_constant() -> None:
    """The non-target and the weak term; the target's weights would differ."""

    def loss(student: torch.Tensor, weak: torch.Tensor) -> torch.Tensor:
        terms = uskd_terms(student, weak, LABELS)
        return terms.non_target + terms.weak

    assert torch.autograd.gradcheck(loss, (logits(0).requires_grad_(), logits(1).requires_grad_()))


def build(method: USKD | None = None) -> torch.nn.Module:
    torch.manual_seed(0)
    return (method or USKD()).build(alone(STUDENT))


def test_soft_is_the_weighted_sum_and_hard_the_cross_entropy() -> None:
    loss = build(USKD(target_weight=0.3, non_target_weight=0.2, weak_weight=0.5))
    weak = loss.weak_head(STUDENT.features.class_tokens[1])
    target, non_target, of_weak = uskd_terms(STUDENT.logits, weak, BATCH.labels)
    terms = loss(STUDENT, BATCH)
    torch.testing.assert_close(terms.soft, 0.3 * target + 0.2 * non_target + 0.5 * of_weak)
    torch.testing.assert_close(terms.hard, F.cross_entropy(STUDENT.logits, BATCH.labels))


def test_the_weak_branch_teaches_its_layer_and_the_network_below_it() -> None:
    student, loss = leaves(STUDENT), build()
    loss(student, BATCH).soft.backward()
    assert loss.weak_head.weight.grad.any()
    assert student.features.class_tokens[1].grad.any()
    assert [token.grad for token in student.features.class_tokens[2:]] == [None, None]


def test_half_precision_features_are_raised_and_autocast_is_left() -> None:
    rounded = changed(STUDENT, torch.Tensor.half)
    expected = build()(changed(rounded, torch.Tensor.float), BATCH)
    with torch.autocast("cpu", torch.bfloat16):
        actual = build()(rounded, BATCH)
    assert torch.equal(actual.soft, expected.soft)


RESNET = ((64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1))


@pytest.mark.parametrize(
    ("shapes", "width", "position"),
    [
        (FeatureShapes(512, RESNET, (512, 1, 1), ()), 256, -2),
        (FeatureShapes(1280, RESNET, (1280, 1, 1), ()), 512, -1),
        (FeatureShapes(192, ((192, 14, 14),) * 12, (192, 14, 14), (192,) * 12), 192, 5),
        (FeatureShapes(192, ((192, 14, 14),) * 12, (192, 14, 14), ()), 192, 5),
        (FeatureShapes(192, ((192, 14, 14),), (192, 14, 14), (192,)), 192, 0),
    ],
    ids=["next-to-last stage", "before a further convolution", "class token", "patches", "single block"],
)
def test_the_weak_branch_begins_in_the_middle(shapes: FeatureShapes, width: int, position: int) -> None:
    loss = USKD().build(Alone(shapes, 10))
    assert (loss.weak_head.in_features, loss.weak_head.out_features) == (width, 10)
    assert (loss.place.position, loss.place.is_token) == (position, bool(shapes.class_tokens))


def test_maps_are_pooled_over_pixels() -> None:
    features = STUDENT.features._replace(class_tokens=())
    student = STUDENT._replace(features=features)
    torch.manual_seed(0)
    loss = USKD().build(alone(student))
    weak = loss.weak_head(features.maps[1].mean(dim=(2, 3)))
    torch.testing.assert_close(
        loss(student, BATCH).soft,
        USKD().target_weight * uskd_terms(student.logits, weak, BATCH.labels).target
        + 0.1 * uskd_terms(student.logits, weak, BATCH.labels).non_target
        + 0.005 * uskd_terms(student.logits, weak, BATCH.labels).weak,
    )


def test_networks_without_a_middle_and_too_few_classes_are_refused() -> None:
    with pytest.raises(ModelError, match="this one has 1 stages; choose a deeper network"):
        USKD().build(Alone(FeatureShapes(8, ((8, 4, 4),), (8, 4, 4), ()), 10))
    with pytest.raises(ModelError, match="it takes 3 classes, not 2"):
        USKD().build(Alone(FeatureShapes(512, RESNET, (512, 1, 1), ()), 2))
