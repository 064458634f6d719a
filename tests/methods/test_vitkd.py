"""What ViTKD mimics and generates, and for which networks."""

import pytest
import torch
from torch import nn

from compress.errors import ModelError
from compress.methods import ViTKD
from compress.methods.base import FeatureShapes, Pair
from compress.methods.vitkd import ViTKDLoss, all_but_smallest
from compress.types import Features
from tests.methods.answers import LABELS, NUM_CLASSES, answer, pair, samples

STUDENT, TEACHER = answer(6, 0), answer(8, 1)
BATCH = samples(3, 39, 0, 17, 8)


def build(method: ViTKD | None = None, student_width: int = 6) -> ViTKDLoss:
    torch.manual_seed(0)
    return (method or ViTKD()).build(pair(answer(student_width, 0), TEACHER))


def shapes(*maps: tuple[int, int, int], last: tuple[int, int, int] | None = None) -> FeatureShapes:
    return FeatureShapes(maps[-1][0], maps, last or maps[-1], ())


@pytest.mark.parametrize(("masked_share", "num_kept"), [(0.5, 6), (0.3, 8), (0.75, 3), (0.95, 0)])
def test_each_image_keeps_the_whole_part_of_its_share_of_tokens(masked_share: float, num_kept: int) -> None:
    """int(N (1 - lambda)) of N = 12 tokens, those with the least noise."""
    loss = build(ViTKD(masked_share=masked_share))
    seen: list[torch.Tensor] = []
    loss.generating = lambda student, teacher, is_masked: seen.append(is_masked) or torch.zeros(())  # type: ignore[method-assign]
    loss(STUDENT, TEACHER, BATCH)
    (is_masked,) = seen
    assert is_masked.shape == (5, 3, 4)
    assert (~is_masked).flatten(1).sum(dim=1).tolist() == [num_kept] * 5
    assert len({tuple(row.tolist()) for row in is_masked.flatten(1)}) > 1 or num_kept == 0


def test_the_least_noise_is_kept() -> None:
    noise = torch.tensor([[0.4, 0.1, 0.3, 0.2], [0.0, 0.9, 0.8, 0.7]])
    assert all_but_smallest(noise, 2).tolist() == [[True, False, True, False], [False, True, True, False]]


def test_only_masked_positions_count_and_only_kept_tokens_help() -> None:
    loss = build()
    is_masked = torch.zeros(5, 3, 4, dtype=torch.bool)
    is_masked[:, :, :2] = True
    expected = loss.generating(STUDENT.features, TEACHER.features, is_masked)

    def moved(features: Features, columns: slice) -> Features:
        last_map = features.last_map.clone()
        last_map[..., columns] += 1.0
        return features._replace(last_map=last_map)

    masked, kept = slice(0, 2), slice(2, 4)
    assert loss.generating(STUDENT.features, moved(TEACHER.features, kept), is_masked) == expected
    assert loss.generating(moved(STUDENT.features, masked), TEACHER.features, is_masked) == expected
    assert loss.generating(STUDENT.features, moved(TEACHER.features, masked), is_masked) != expected
    assert loss.generating(moved(STUDENT.features, kept), TEACHER.features, is_masked) != expected


def test_the_first_two_blocks_are_mimicked() -> None:
    loss, features = build(student_width=8), TEACHER.features
    for block, counts in enumerate([True, True, False, False]):
        maps = list(features.maps)
        maps[block] = maps[block] + 1.0
        error = loss.mimicking(features._replace(maps=tuple(maps)), features).item()
        # One per channel and token, 8 x 12 of them, in each image.
        assert error == pytest.approx(3e-5 * 96 if counts else 0.0)


def test_networks_of_one_width_need_no_linear_layers() -> None:
    loss = build(student_width=8)
    assert {type(layer) for layer in (*loss.shallow_aligns, loss.deep_align)} == {nn.Identity}
    assert loss(TEACHER, TEACHER, BATCH).soft > 0  # the generation still has to be learned
    assert {type(layer) for layer in (*build().shallow_aligns, build().deep_align)} == {nn.Conv2d}


def test_the_mask_token_stands_where_tokens_are_missing() -> None:
    loss = build()
    loss(STUDENT, TEACHER, BATCH).soft.backward()
    assert loss.mask_token.grad is not None
    assert loss.mask_token.grad.any()


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (shapes((16, 8, 8), (32, 4, 4), (64, 2, 2)), shapes(*[(8, 3, 4)] * 4), "the student's maps are 16x8x8, 32x4x4"),
        (shapes(*[(8, 3, 4)] * 4), shapes((16, 8, 8), (32, 4, 4), (64, 2, 2)), "the teacher's maps are 16x8x8"),
        (shapes(*[(8, 3, 4)] * 2), shapes(*[(8, 3, 4)] * 4), "more than 2 blocks, but the student's"),
        (shapes(*[(8, 3, 4)] * 4, last=(9, 3, 4)), shapes(*[(8, 3, 4)] * 4), "plain vision transformer"),
        (shapes(*[(8, 7, 7)] * 4), shapes(*[(8, 14, 14)] * 4), "the student has 7x7 tokens and the teacher 14x14"),
    ],
)
def test_networks_that_cannot_be_compared_are_named(
    student: FeatureShapes, teacher: FeatureShapes, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        ViTKD().build(Pair(student, teacher, LABELS, NUM_CLASSES))


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_some_tokens_are_masked_and_some_are_not(share: float) -> None:
    with pytest.raises(ValueError, match="masked_share"):
        ViTKD(masked_share=share)
