"""Mixup and CutMix: timm's arithmetic, drawn from seed, epoch and step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from timm.data import mixup as timm_mixup

from compress.data.mixing import Mix, Mixing, cut_box, draw_mix, mix, mix_images, mix_labels

BOTH = Mixing(mixup_alpha=0.8, cutmix_alpha=1.0)
MIXUP, CUTMIX = Mixing(mixup_alpha=0.2), Mixing(cutmix_alpha=1.0)
NUM_CLASSES = 7


def batch(size: int = 8, height: int = 12, width: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(size, 3, height, width, generator=generator)
    return images, torch.randint(NUM_CLASSES, (size,), generator=generator)


def draws(settings: Mixing, num_steps: int = 2000, size: tuple[int, int] = (32, 24)) -> list[Mix]:
    return [draw_mix(settings, size, seed=1, epoch=2, step=step) for step in range(num_steps)]


@pytest.mark.parametrize("size", [2, 8])
@pytest.mark.parametrize("drawn", [*draws(BOTH, 12, (12, 10)), Mix(1.0), Mix(0.0), Mix(0.3)], ids=repr)
def test_mixing_equals_timms_for_the_same_share_and_box(drawn: Mix, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = batch(size)
    reference = timm_mixup.Mixup(mixup_alpha=1.0, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=NUM_CLASSES)
    monkeypatch.setattr(reference, "_params_per_batch", lambda: (drawn.share, drawn.box is not None))
    if drawn.box is not None:
        left, top, right, bottom = drawn.box
        box = (top, bottom, left, right)
        monkeypatch.setattr(timm_mixup, "cutmix_bbox_and_lam", lambda *_, **__: (box, drawn.share))
    expected_images, expected_labels = reference(images.clone(), labels)
    assert torch.equal(mix_images(images, drawn), expected_images)
    assert torch.equal(mix_labels(labels, NUM_CLASSES, drawn.share), expected_labels)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (12, 10), (7, 224), (1, 1)])
def test_boxes_equal_timms_for_the_same_share_and_centre(
    height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    for share in [0.0, 1.0, 1e-9, *generator.random(40).tolist()]:
        center = (int(generator.integers(height)), int(generator.integers(width)))
        answers = iter(center)
        monkeypatch.setattr(timm_mixup.np.random, "randint", lambda *_, answers=answers, **__: next(answers))
        top, bottom, left, right = timm_mixup.rand_bbox((3, height, width), share)
        assert cut_box(height, width, share=share, center=center) == (left, top, right, bottom)


@pytest.mark.parametrize("settings", [BOTH, MIXUP, CUTMIX], ids=repr)
@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_labels_have_the_share_of_the_pixels(settings: Mixing, size: int) -> None:
    # Every image is a plane of its own number, so that the mean of a mixed one tells what went into it.
    images = torch.arange(size, dtype=torch.float32)[:, None, None, None].expand(size, 3, 12, 10)
    for step in range(20):
        mixed, shares = mix(images, torch.arange(size), size, settings=settings, seed=0, epoch=0, step=step)
        assert mixed.shape == images.shape
        assert torch.allclose(shares.sum(dim=1), torch.ones(size))
        numbers = shares @ torch.arange(size, dtype=torch.float32)
        # float32 sums over 360 pixels of numbers below 8
        assert torch.allclose(mixed.mean(dim=(1, 2, 3)), numbers, atol=1e-5)


def test_the_middle_of_an_odd_batch_stays_as_it_is() -> None:
    images, labels = batch(5)
    for step in range(20):
        mixed, shares = mix(images, labels, NUM_CLASSES, settings=BOTH, seed=0, epoch=0, step=step)
        assert torch.allclose(mixed[2], images[2])
        assert shares[2].argmax() == labels[2]
        assert shares[2].max() == pytest.approx(1.0)


def test_the_same_seed_epoch_and_step_mix_in_the_same_way_and_others_in_another() -> None:
    def drawn(seed: int, epoch: int, step: int) -> Mix:
        return draw_mix(BOTH, (32, 32), seed=seed, epoch=epoch, step=step)

    moments = [(seed, epoch, step) for seed in (0, 1, 2**40) for epoch in range(4) for step in range(6)]
    in_order = [drawn(*moment) for moment in moments]
    assert [drawn(*moment) for moment in reversed(moments)] == in_order[::-1]
    assert len(set(in_order)) == len(moments)


def test_mixes_of_today_are_those_of_tomorrow() -> None:
    assert [(round(drawn.share, 6), drawn.box) for drawn in draws(BOTH, 4)] == [
        (0.708333, (8, 0, 24, 14)),
        (0.574004, None),
        (0.59375, (0, 6, 12, 32)),
        (0.076017, None),
    ]


def test_mixing_draws_other_numbers_than_the_order_of_images() -> None:
    # numpy fills short seeds with zeros: in step 0 the triple alone would give the numbers of (seed, epoch).
    order = np.random.default_rng((1, 2))
    order.random(4)
    assert draw_mix(MIXUP, (8, 8), seed=1, epoch=2, step=0).share != order.beta(0.2, 0.2)


def test_global_random_state_plays_no_part() -> None:
    images, labels = batch()
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    mix(images, labels, NUM_CLASSES, settings=BOTH, seed=0, epoch=0, step=0)
    assert np.array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.0])
def test_mixup_shares_have_the_moments_of_the_beta_distribution(alpha: float) -> None:
    shares = np.array([drawn.share for drawn in draws(Mixing(mixup_alpha=alpha))])
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 5 * (variance / len(shares)) ** 0.5
    # (x - 0.5)**2 lies in 0 to 1/4, so its deviation is at most 1/8.
    assert abs(shares.var() - variance) < 5 * (1 / 8) / len(shares) ** 0.5


def test_probabilities_of_mixing_and_of_cutmix_are_kept() -> None:
    settings = Mixing(mixup_alpha=0.8, cutmix_alpha=1.0, probability=0.8, switch_probability=0.25)
    drawn = draws(settings)
    num_unmixed = sum(each == Mix(1.0) for each in drawn)
    num_cut = sum(each.box is not None for each in drawn)
    assert abs(num_unmixed - 400) < 90  # 5 standard deviations of 2000 at 0.2
    assert abs(num_cut - 400) < 90
    num_cut_by_default = sum(each.box is not None for each in draws(BOTH))
    assert abs(num_cut_by_default - 1000) < 112


def test_cutmix_boxes_lie_inside_and_shares_are_their_exact_areas() -> None:
    drawn = draws(CUTMIX, 500)
    for share, box in drawn:
        assert box is not None
        assert 0 <= box.left <= box.right <= 24
        assert 0 <= box.top <= box.bottom <= 32
        assert share == 1 - (box.right - box.left) * (box.bottom - box.top) / (32 * 24)
    assert {box.left for _, box in drawn if box} >= set(range(22))  # further right only boxes of one or two columns


def test_unmixed_batches_keep_images_and_get_whole_labels() -> None:
    images, labels = batch()
    mixed, shares = mix_images(images, Mix(1.0)), mix_labels(labels, NUM_CLASSES, 1.0)
    assert torch.equal(mixed, images)
    assert torch.equal(shares, torch.nn.functional.one_hot(labels, NUM_CLASSES).float())


@pytest.mark.parametrize("settings", [MIXUP, CUTMIX], ids=repr)
def test_arguments_stay_as_they_are_and_formats_are_kept(settings: Mixing) -> None:
    images, labels = batch()
    images = images.half().contiguous(memory_format=torch.channels_last)
    before = images.clone(), labels.clone()
    mixed, shares = mix(images, labels, NUM_CLASSES, settings=settings, seed=0, epoch=0, step=0)
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])
    assert not torch.equal(mixed, images)
    assert mixed.dtype == torch.float16
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert shares.dtype == torch.float32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "mixing without mixup_alpha and cutmix_alpha does nothing; set one"),
        ({"mixup_alpha": 0.2, "switch_probability": 0.5}, "switch_probability chooses between mixup and CutMix"),
        ({"cutmix_alpha": 1, "switch_probability": 0.5}, "set both alphas or leave it out"),
        ({"mixup_alpha": 0}, "mixup_alpha"),
        ({"mixup_alpha": 1, "probability": 0}, "probability"),
        ({"mixup_alpha": 1, "cutmix_alpha": 1, "switch_probability": 1}, "switch_probability"),
        ({"mixup_alpha": 1, "label_smoothing": 0.1}, "label_smoothing"),
    ],
    ids=repr,
)
def test_mixing_that_can_not_be_meant_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Mixing.model_validate(values)
