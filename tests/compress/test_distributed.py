"""Several ranks train as one does: the same batches, statistics, losses and weights, up to the order of sums."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from compress.data.mixing import Mixing
from compress.errors import ArtifactError, ParamsError, TrainingError
from compress.methods import CRD, DIST, ITRD, KD, USKD, Combination, Method
from compress.optimization import SGD, AdamW, Constant
from compress.ranks import ALONE, Ranks, accept, invite
from tests.compress.lessons_for_ranks import (
    SETTINGS,
    Lesson,
    Outcome,
    die,
    fail,
    normalise,
    say,
    sent_after_the_first_step,
    train,
)
from tests.compress.ranks_at_work import Workers, workers

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def ranks() -> Iterator[Workers]:
    with workers(4) as started:
        yield started


def settings(**changed: Any) -> Any:
    return SETTINGS.model_copy(update=changed)


def assert_close(first: Outcome, second: Outcome) -> None:
    for part, other in zip(first[:3], second[:3], strict=True):
        assert part.keys() == other.keys()
        for name, value in part.items():
            torch.testing.assert_close(other[name], value, atol=TOLERANCE, rtol=TOLERANCE, msg=name)
    assert np.allclose(first.history, second.history, atol=TOLERANCE, rtol=TOLERANCE)


def assert_same(first: Outcome, second: Outcome) -> None:
    for part, other in zip(first[:3], second[:3], strict=True):
        assert part.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in part.items())
    assert first.history == second.history


LESSONS = {
    "cross-entropy": Lesson(),
    "batches that ranks cannot share evenly": Lesson(settings(batch_size=11), num_images=29),
    "a last batch smaller than the number of ranks": Lesson(settings(batch_size=12), num_images=27),
    "mixup and CutMix": Lesson(settings(mixing=Mixing(mixup_alpha=0.8, cutmix_alpha=1.0), batch_size=9)),
    "average, clipping, AdamW": Lesson(
        settings(optimizer=AdamW(), ema_decay=0.9, gradient_clip_norm=0.5), KD(), is_taught=True
    ),
    # Its gradient is steep where a student that has learned nothing gives all classes the same: small steps.
    "a loss that compares images": Lesson(settings(optimizer=SGD(learning_rate=1e-3)), DIST(), is_taught=True),
    "a loss with correlations and a layer of its own": Lesson(method=ITRD(), is_taught=True),
    "a loss with a memory that draws images": Lesson(method=CRD(num_negatives=5), is_taught=True),
    "a loss on maps, without a teacher": Lesson(method=USKD()),
    "losses on logits and features": Lesson(method=Combination(logits=KD(), features=(ITRD(),)), is_taught=True),
}


@pytest.mark.parametrize("lesson", LESSONS.values(), ids=LESSONS)
def test_one_two_and_four_ranks_train_the_same_network(ranks: Workers, lesson: Lesson) -> None:
    [alone] = ranks.together(1, train, lesson)
    for number in (2, 4):
        for outcome in ranks.together(number, train, lesson):
            assert_close(alone, outcome)


@pytest.mark.parametrize(
    "lesson",
    [
        Lesson(settings(batch_size=10), ITRD(), is_taught=True),
        Lesson(settings(batch_size=16, micro_batch_size=2), KD(), is_taught=True),
        Lesson(settings(precision="bfloat16"), KD(), is_taught=True),
    ],
    ids=["float32", "in pieces", "bfloat16"],
)
def test_all_ranks_hold_the_same_bits(ranks: Workers, lesson: Lesson) -> None:
    outcomes = ranks.together(3, train, lesson)
    assert_same(outcomes[0], outcomes[1])
    assert_same(outcomes[0], outcomes[2])


@pytest.mark.parametrize("number", [2, 3, 4])
def test_resumed_ranks_go_on_to_the_bits_of_uninterrupted_ones(ranks: Workers, number: int, tmp_path: Path) -> None:
    """With three and more, the order of sums depends on where a gradient stands in its bucket."""
    lesson = Lesson(settings(batch_size=10, optimizer=AdamW(), ema_decay=0.9), KD(), is_taught=True)
    whole = ranks.together(number, train, lesson)
    lesson = lesson._replace(checkpoint=tmp_path / "state.pt")
    ranks.together(number, train, lesson._replace(stop_after=1))
    assert_same(whole[0], ranks.together(number, train, lesson)[0])


def test_a_checkpoint_goes_on_with_another_number_of_ranks(ranks: Workers, tmp_path: Path) -> None:
    lesson = Lesson(checkpoint=tmp_path / "state.pt")
    ranks.together(2, train, lesson._replace(stop_after=1))
    [alone] = ranks.together(1, train, Lesson())
    assert_close(alone, ranks.together(1, train, lesson)[0])
    assert_close(alone, ranks.together(4, train, lesson)[0])


def test_bfloat16_differs_between_numbers_of_ranks_by_its_rounding(ranks: Workers) -> None:
    lesson = Lesson(settings(precision="bfloat16"))
    [alone], [two, _] = ranks.together(1, train, lesson), ranks.together(2, train, lesson)
    assert two.history[-1].train_loss == pytest.approx(alone.history[-1].train_loss, rel=0.02)


def norms() -> dict[str, nn.Module]:
    from timm.layers.norm_act import BatchNormAct2d

    return {
        "plain": nn.BatchNorm2d(3),
        "without weights": nn.BatchNorm2d(3, affine=False),
        "without running statistics": nn.BatchNorm2d(3, track_running_stats=False),
        "cumulative": nn.BatchNorm2d(3, momentum=None),
        "with an activation": BatchNormAct2d(3),
        "of vectors": nn.BatchNorm1d(3),
        "evaluating": nn.BatchNorm2d(3).eval(),
    }


@pytest.mark.parametrize("name", norms())
def test_normalisation_over_ranks_is_that_of_the_whole_batch(ranks: Workers, name: str) -> None:
    """Values far from zero, where sums of squares would cancel; 7 images are 3 and 4."""
    generator = torch.Generator().manual_seed(0)
    norm = norms()[name]
    shape = (7, 3) if name == "of vectors" else (7, 3, 4, 4)
    images, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
    images = images + 100
    norm_alone = norms()[name]
    own = images.clone().requires_grad_()
    answer = norm_alone(own)
    answer.backward(gradient)
    parts = ranks.together(2, normalise, norm, images, gradient)
    places = np.concatenate([Ranks(rank, 2).places(rank, 7) for rank in range(2)])
    assert own.grad is not None
    for key, whole in (("answer", answer), ("gradient", own.grad)):
        joined = np.concatenate([part[key] for part in parts])
        np.testing.assert_allclose(joined, whole.detach()[places], atol=1e-4, err_msg=key)
    for key, parameter in norm_alone.named_parameters():
        assert parameter.grad is not None
        total = sum(part[f"gradient of {key}"] for part in parts)
        np.testing.assert_allclose(total, parameter.grad, atol=1e-3, err_msg=key)
    for key, buffer in norm_alone.named_buffers():
        np.testing.assert_allclose(parts[0][key], buffer, rtol=1e-5, err_msg=key)


def test_the_parts_of_a_batch_are_the_whole_batch_and_mirror_themselves() -> None:
    for number in (2, 3, 4, 7):
        for num_images in range(2 * number - 1, 40):
            parts = [Ranks(rank, number).part_of(num_images) for rank in range(number)]
            assert sorted(np.concatenate(parts).tolist()) == list(range(num_images))
            assert all((num_images - 1 - part[::-1] == part).all() for part in parts)


def test_a_small_batch_is_computed_whole_by_every_rank() -> None:
    assert [Ranks(1, 4).divides(number) for number in (1, 6, 7, 8)] == [False, False, True, True]
    assert Ranks(1, 4).part_of(6) == slice(None) == ALONE.part_of(100)


def test_ranks_draw_masks_of_their_own() -> None:
    from compress.distributed import _own_random_numbers

    drawn = []
    for rank in range(3):
        torch.manual_seed(5)
        with _own_random_numbers(Ranks(rank, 3), torch.device("cpu")):
            drawn.append(torch.rand(4))
        drawn.append(torch.rand(4))
    assert len({tuple(each.tolist()) for each in drawn[::2]}) == 3
    assert all(torch.equal(drawn[1], each) for each in drawn[1::2])


@pytest.mark.parametrize(("method", "used"), [(ITRD(), {"logits", "pooled"}), (KD(), {"logits"})], ids=["itrd", "kd"])
def test_only_what_the_loss_uses_is_sent(ranks: Workers, method: Method, used: set[str]) -> None:
    assert ranks.together(2, sent_after_the_first_step, method) == [used, used]


def test_a_batch_with_nothing_for_some_ranks_is_refused(ranks: Workers) -> None:
    with pytest.raises(ParamsError, match=r"rank 0: train\.batch_size: 6 is the batch of all 4 ranks .* set it to 8"):
        ranks.together(4, train, Lesson(settings(batch_size=6)))


def test_ranks_meet_where_others_have_died() -> None:
    """The store still holds the calls of the second and third rank of before, one answered and one not."""
    store = dist.HashStore()
    store.set("compress/1", "dead")
    store.set("compress/2", "dead")
    store.set("compress/2/dead", "earlier meeting")
    with ThreadPoolExecutor(3) as threads:
        names = [threads.submit(invite, store, 3)]
        time.sleep(0.1)  # the first rank reads and answers the dead ones' calls
        names += [threads.submit(accept, store, rank) for rank in (1, 2)]
        found = {name.result(timeout=20) for name in names}
    assert len(found) == 1
    assert found != {"earlier meeting"}


def test_ranks_agree_on_what_the_first_has(ranks: Workers) -> None:
    assert ranks.together(3, say, ["a", "b", "c"]) == ["a", "a", "a"]


def test_a_loss_that_is_not_finite_ends_all_ranks_by_name(ranks: Workers) -> None:
    lesson = Lesson(settings(optimizer=SGD(learning_rate=1e30), schedule=Constant()))
    with pytest.raises(TrainingError, match=r"rank 0: the loss became .* of epoch 1 .*; lower"):
        ranks.together(2, train, lesson)


def test_an_error_of_one_rank_is_named_and_ends_the_others(ranks: Workers) -> None:
    waiting, failing = ranks.attempts(2, fail)
    assert isinstance(failing, ArtifactError)
    assert str(failing) == "rank 1: image 5 is damaged"
    assert isinstance(waiting, TrainingError)
    assert "rank 0: another rank has ended or does not answer" in str(waiting)


def test_a_killed_rank_ends_the_others() -> None:
    with workers(2) as started:
        waiting, _ = started.attempts(2, die)
    assert isinstance(waiting, TrainingError)
