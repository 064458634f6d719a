"""The memories, the negatives and the fixed normaliser of CRD."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from compress.errors import ModelError
from compress.methods import CRD
from compress.methods.base import Pair, Samples
from compress.methods.crd import CRDLoss
from tests.methods.answers import NUM_CLASSES, answer, leaves, pair, samples

STUDENT, TEACHER = answer(6, 0), answer(8, 1)
BATCH = samples(3, 39, 0, 17, 8)


def build(method: CRD | None = None, labels: np.ndarray | None = None, num_classes: int = NUM_CLASSES) -> CRDLoss:
    torch.manual_seed(0)
    plan = pair(STUDENT, TEACHER)
    if labels is not None:
        plan = Pair(plan.student, plan.teacher, labels, num_classes)
    return (method or CRD(num_negatives=9, embedding_size=4)).build(plan)


def test_entries_of_the_batch_move_half_way_and_stay_unit_vectors() -> None:
    loss = build()
    sides = ((loss.student, STUDENT), (loss.teacher, TEACHER))
    before = [side.memory.clone() for side, _ in sides]
    embeddings = [side.embed(of.features.pooled).detach() for side, of in sides]
    loss(STUDENT, TEACHER, BATCH)
    others = [index for index in range(40) if index not in BATCH.indices]
    for (side, _), old, embedding in zip(sides, before, embeddings, strict=True):
        moved = F.normalize(0.5 * old[BATCH.indices] + 0.5 * embedding, dim=1)
        torch.testing.assert_close(side.memory[BATCH.indices], moved)
        torch.testing.assert_close(side.memory[BATCH.indices].norm(dim=1), torch.ones(5))
        assert torch.equal(side.memory[others], old[others])


def test_memories_start_uniform_between_the_published_bounds() -> None:
    memory = build(CRD(embedding_size=12)).student.memory
    assert memory.shape == (40, 12)
    assert memory.abs().max() <= 0.5  # 1 / sqrt(12 / 3)
    assert memory.abs().max() > 0.48
    assert abs(memory.mean()) < 0.05


def test_memories_collect_no_gradients() -> None:
    loss = build()
    for _ in range(2):
        loss(leaves(STUDENT), leaves(TEACHER), BATCH).total.backward()
    for side in (loss.student, loss.teacher):
        assert not side.memory.requires_grad
        assert not side.log_normaliser.requires_grad
    assert {name for name, _ in loss.named_parameters()} == {
        f"{side}.embedding.{kind}" for side in ("student", "teacher") for kind in ("weight", "bias")
    }


def test_the_normaliser_is_that_of_the_first_batch_for_ever() -> None:
    loss = build()
    negatives = torch.arange(20).expand(5, -1)
    candidates = torch.cat([BATCH.indices.unsqueeze(1), negatives], dim=1)
    embedding = loss.student.embed(STUDENT.features.pooled)
    scores = torch.einsum("be,bke->bk", embedding, loss.teacher.memory[candidates]).div(0.07).exp()
    expected = (scores.mean() * 40).log()

    def contrast(seed: int) -> None:
        loss.contrast(answer(6, seed).features.pooled, TEACHER.features.pooled, BATCH.indices, negatives)

    contrast(0)
    torch.testing.assert_close(loss.student.log_normaliser, expected)
    first = loss.student.log_normaliser.clone(), loss.teacher.log_normaliser.clone()
    contrast(2)
    assert (loss.student.log_normaliser, loss.teacher.log_normaliser) == first
    assert first[0] != first[1]


def test_nothing_is_remembered_outside_of_training() -> None:
    loss = build().eval()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    loss(STUDENT, TEACHER, BATCH)
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


def test_the_state_is_memories_normalisers_and_layers() -> None:
    state = build().state_dict()
    assert {name.removeprefix("student.") for name in state if name.startswith("student.")} == {
        "memory",
        "log_normaliser",
        "embedding.weight",
        "embedding.bias",
    }
    assert not [name for name in state if name.startswith("others.")]  # follows from the data


def test_an_update_leaves_the_backward_pass_its_old_entries() -> None:
    """The gradient is that of the memory as it was in the forward pass."""
    student, loss, still = leaves(STUDENT), build(), build().eval()
    torch.manual_seed(1)
    loss(student, TEACHER, BATCH).soft.backward()
    expected = leaves(STUDENT)
    torch.manual_seed(1)
    still(expected, TEACHER, BATCH).soft.backward()
    assert torch.equal(student.features.pooled.grad, expected.features.pooled.grad)


class TestNegatives:
    def draw(self, num_drawn: int, labels: np.ndarray, classes: list[int], num_classes: int = 3) -> torch.Tensor:
        others = build(labels=labels, num_classes=num_classes).others
        return others.draw(torch.tensor(classes), num_drawn)

    @pytest.mark.parametrize("num_drawn", [1, 20, 30])
    def test_enough_others_are_all_different_and_never_of_the_own_class(self, num_drawn: int) -> None:
        labels = np.random.default_rng(0).permutation(np.arange(45, dtype=np.int64) % 3)
        negatives = self.draw(num_drawn, labels, [0, 1, 2, 2])
        for own, row in zip([0, 1, 2, 2], negatives.tolist(), strict=True):
            assert len(set(row)) == num_drawn
            assert own not in labels[row]

    def test_too_few_others_are_repeated_and_never_of_the_own_class(self) -> None:
        labels = np.random.default_rng(0).permutation(np.arange(45, dtype=np.int64) % 3)
        negatives = self.draw(1000, labels, [0, 1, 2, 2])
        for own, row in zip([0, 1, 2, 2], negatives.tolist(), strict=True):
            assert set(row) == set(np.flatnonzero(labels != own).tolist())

    def test_each_class_is_drawn_from_as_its_own_number_of_others_allows(self) -> None:
        labels = np.array([0] * 10 + [1] * 3 + [2] * 2, dtype=np.int64)
        negatives = self.draw(8, labels, [0, 1])  # the first class has 5 others, the second 12
        assert len(set(negatives[0].tolist())) <= 5
        assert len(set(negatives[1].tolist())) == 8
        assert set(labels[negatives[0]]) <= {1, 2}
        assert 1 not in labels[negatives[1]]

    @pytest.mark.parametrize("num_drawn", [5, 40])
    def test_every_other_image_is_equally_likely(self, num_drawn: int) -> None:
        labels = np.array([1, 0, 0, 2, 1, 0, 2, 2, 0, 1, 0, 0], dtype=np.int64)
        negatives = self.draw(num_drawn, labels, [1] * 4000)
        counts = negatives.flatten().bincount(minlength=12)
        assert counts[labels == 1].tolist() == [0, 0, 0]
        expected = 4000 * num_drawn / 9
        # Five standard deviations of a binomial count.
        assert (counts[labels != 1] - expected).abs().max() < 5 * expected**0.5

    def test_rows_and_batches_draw_for_themselves(self) -> None:
        others = build(labels=np.arange(200, dtype=np.int64) % 2, num_classes=2).others
        first, second = (others.draw(torch.tensor([0, 0]), 20).sort(dim=1).values for _ in range(2))
        assert not torch.equal(first[0], first[1])
        assert not torch.equal(first, second)

    def test_a_class_without_images_has_all_as_others(self) -> None:
        labels = np.array([0, 0, 2, 2], dtype=np.int64)
        assert sorted(self.draw(4, labels, [1])[0].tolist()) == [0, 1, 2, 3]


def test_data_of_a_single_class_is_refused() -> None:
    with pytest.raises(ModelError, match="all 12 train images are of one"):
        build(labels=np.full(12, 2, dtype=np.int64))


def test_a_low_temperature_does_not_overflow() -> None:
    student, loss = leaves(STUDENT), build(CRD(num_negatives=9, embedding_size=4, temperature=1e-3))
    terms = loss(student, TEACHER, BATCH)
    terms.soft.backward()
    assert terms.soft.isfinite()
    assert student.features.pooled.grad.isfinite().all()


def test_the_weight_scales_the_loss() -> None:
    plain, doubled = (build(CRD(num_negatives=9, embedding_size=4, weight=weight)).eval() for weight in (0.8, 1.6))
    torch.manual_seed(1)
    expected = 2 * plain(STUDENT, TEACHER, BATCH).soft
    torch.manual_seed(1)
    torch.testing.assert_close(doubled(STUDENT, TEACHER, BATCH).soft, expected)


def test_matching_embeddings_cost_less_than_mismatched_ones() -> None:
    loss = build(CRD(num_negatives=20, embedding_size=8)).eval()
    embeddings = F.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(2)), dim=1)
    everything = samples(*range(40))
    negatives = loss.others.draw(everything.labels, 20)
    candidates = torch.cat([everything.indices.unsqueeze(1), negatives], dim=1)
    matched = loss.student.loss(embeddings, embeddings, candidates)
    assert matched < loss.student.loss(embeddings.roll(1, dims=0), embeddings, candidates)


def test_indices_say_which_entries_are_meant() -> None:
    loss = build().eval()
    torch.manual_seed(1)
    here = loss(STUDENT, TEACHER, BATCH).soft
    elsewhere = Samples(BATCH.labels, (BATCH.indices + 7) % 35, 1)  # the same classes, seven further
    torch.manual_seed(1)
    assert loss(STUDENT, TEACHER, elsewhere).soft != here
