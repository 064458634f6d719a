"""Random crops equal to torchvision's, with optional parts that do not disturb each other."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional

from compress.data.color_jitter import ColorJitter
from compress.data.counter_hash import combine, seed_key, uniform_rows, uniforms
from compress.data.prepared import ArraySplit
from compress.data.preprocessing import RESAMPLING
from compress.data.rand_augment import RandAugment
from compress.data.random_erasing import NUM_DRAWS, draw_erased_box, erase
from compress.data.views import RandomResizedCropFlip
from tests.compress.data.array_splits import smooth_split, views_of

BOTH = tuple(RESAMPLING.values())
NUM_SLOTS = 30
COUNTERS = {"filter": 41, "rand_augment": 42, "color_jitter": 43, "erasing": 44, "noise": 45}


def view_keys(part: str | None = None) -> np.ndarray:
    keys = combine(combine(seed_key(2), np.array([1])), np.arange(NUM_SLOTS))
    return keys if part is None else combine(keys, np.array(COUNTERS[part]))


def views(**values: object) -> np.ndarray:
    rule = RandomResizedCropFlip.model_validate(values)
    return views_of(smooth_split(), rule, image=1, num_slots=NUM_SLOTS, seed=2).numpy()


def test_crops_of_today_are_those_of_tomorrow() -> None:
    keys = combine(seed_key(0), np.arange(4))
    draws = uniforms(combine(combine(keys, np.arange(4))[:, None], np.arange(41)))
    boxes = [RandomResizedCropFlip().draw_box(500, 375, draws=row) for row in draws]
    assert boxes == [(221, 107, 391, 327), (333, 14, 494, 197), (69, 14, 407, 271), (13, 44, 277, 304)]


@pytest.mark.parametrize(("width", "height"), [(500, 375), (32, 32), (40, 300), (3000, 50), (1, 1), (2, 7)])
def test_crops_lie_inside_and_keep_to_scale_and_ratio(width: int, height: int) -> None:
    rule = RandomResizedCropFlip(min_scale=0.2, max_scale=0.5)
    draws = uniforms(combine(seed_key(1), np.arange(200 * 41)).reshape(200, 41))
    for row in draws:
        left, top, right, bottom = rule.draw_box(width, height, draws=row)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
    if (width, height) == (500, 375):
        boxes = np.array([rule.draw_box(width, height, draws=row) for row in draws])
        sizes = boxes[:, 2:] - boxes[:, :2]
        scales, ratios = sizes.prod(axis=1) / (width * height), sizes[:, 0] / sizes[:, 1]
        assert 0.19 < scales.min() < 0.25
        assert 0.45 < scales.max() < 0.51
        assert 0.73 < ratios.min() < 0.8
        assert 1.2 < ratios.max() < 1.36
        assert boxes[:, 0].std() > 20


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_random_resized_crop_equals_torchvision_for_the_same_box(interpolation: str) -> None:
    picture = smooth_split().picture(1)
    mode = functional.InterpolationMode(interpolation)
    for view, draws in zip(views(interpolation=interpolation), uniform_rows(view_keys(), 41), strict=True):
        left, top, right, bottom = RandomResizedCropFlip().draw_box(picture.width, picture.height, draws=draws)
        expected = functional.resized_crop(picture, top, left, bottom - top, right - left, [24, 30], mode)
        expected = functional.hflip(expected) if draws[-1] < 0.5 else expected
        assert np.array_equal(view, np.asarray(expected))


def test_random_interpolation_takes_each_filter_for_about_half_of_the_views() -> None:
    random, by_name = views(interpolation="random"), [views(interpolation=name) for name in RESAMPLING]
    draws = uniform_rows(view_keys("filter"), 1)[:, 0]
    for slot, view in enumerate(random):
        assert np.array_equal(view, by_name[int(2 * draws[slot])][slot])
    assert not np.array_equal(*by_name)
    assert 5 < (draws < 0.5).sum() < 25  # 3.6 standard deviations


def test_about_half_of_the_random_crops_are_mirrored() -> None:
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8)[None, None, :, None] * 8, (1, 32, 32, 3)).copy()
    split = ArraySplit(ramp, np.zeros(1, dtype=np.int64))
    mixed = views_of(split, RandomResizedCropFlip(), num_slots=200).int()
    num_mirrored = int((mixed[:, 16, 0, 0] > mixed[:, 16, -1, 0]).sum())
    assert 70 < num_mirrored < 130  # 4 standard deviations
    unmirrored = views_of(split, RandomResizedCropFlip(flip=False), num_slots=200).int()
    assert (unmirrored[:, 16, 0, 0] < unmirrored[:, 16, -1, 0]).all()


@pytest.mark.parametrize("interpolation", ["bicubic", "random"])
def test_parts_follow_the_unchanged_crop_in_timms_order(interpolation: str) -> None:
    rand_augment = RandAugment(probability=1.0)
    color_jitter = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4)
    strong = views(
        interpolation=interpolation, rand_augment=rand_augment, color_jitter=color_jitter, erase_probability=0.6
    )
    resamplings = BOTH if interpolation == "random" else (RESAMPLING["bicubic"],)
    augment_draws = uniform_rows(view_keys("rand_augment"), rand_augment.num_draws).tolist()
    jitter_draws = uniform_rows(view_keys("color_jitter"), color_jitter.num_draws).tolist()
    erasing_draws = uniform_rows(view_keys("erasing"), NUM_DRAWS).tolist()
    noise_keys = view_keys("noise")
    for slot, plain in enumerate(views(interpolation=interpolation)):
        picture = rand_augment.apply(Image.fromarray(plain), augment_draws[slot], resamplings)
        pixels = np.asarray(color_jitter.apply(picture, jitter_draws[slot]))
        key = noise_keys[slot : slot + 1]
        assert np.array_equal(strong[slot], erase(pixels, erasing_draws[slot], probability=0.6, key=key))


def test_erasing_with_probability_one_erases_a_box_of_every_view_and_nothing_else() -> None:
    draws = uniform_rows(view_keys("erasing"), NUM_DRAWS).tolist()
    for slot, (erased, plain) in enumerate(zip(views(erase_probability=1.0), views(), strict=True)):
        box = draw_erased_box(30, 24, draws[slot], probability=1.0)
        assert box is not None
        left, top, right, bottom = box
        outside = np.ones((24, 30), dtype=bool)
        outside[top:bottom, left:right] = False
        assert np.array_equal(erased[outside], plain[outside])
        assert not np.array_equal(erased, plain)
