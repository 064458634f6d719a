"""Padding, cropping, mirroring and rotating, equal to torchvision's pixel for pixel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from compress.data import pad_crop as module
from compress.data.counter_hash import combine, seed_key, uniform_rows
from compress.data.pad_crop import rotate
from compress.data.views import PadCropFlip, PadCropFlipRotate, pad_crop_flip, permuted, view_images
from tests.compress.data.array_splits import array_split, views_of
from tests.compress.data.uniformity import assert_uniform


def expected_view(image: np.ndarray, *, pad: int, top: int, left: int, mirrored: bool) -> Image.Image:
    height, width, _ = image.shape
    padded = functional.pad(Image.fromarray(image), [pad, pad, pad, pad])
    cropped = functional.crop(padded, top, left, height, width)
    return functional.hflip(cropped) if mirrored else cropped


def test_all_162_views_equal_pillow_crop_and_flip_bit_for_bit() -> None:
    images = array_split(3).images(np.arange(3)).numpy()
    num_compared = 0
    for image, top, left, mirrored in itertools.product(range(3), range(9), range(9), (False, True)):
        view = pad_crop_flip(
            images[image : image + 1],
            pad=4,
            tops=np.array([top]),
            lefts=np.array([left]),
            mirrored=np.array([mirrored]),
        )[0]
        expected = expected_view(images[image], pad=4, top=top, left=left, mirrored=mirrored)
        assert np.array_equal(view, np.asarray(expected))
        num_compared += 1
    assert num_compared == 3 * 162


def test_pad_crop_flip_of_a_wide_image() -> None:
    views = views_of(array_split(2, height=8, width=20), PadCropFlip(pad=2), num_slots=50)
    assert views.shape == (50, 8, 20, 3)
    assert len({view.numpy().tobytes() for view in views}) == 50


def test_another_seed_gives_another_order_of_the_same_162_views() -> None:
    split = array_split(2)
    one, other = (views_of(split, PadCropFlip(), num_slots=162, seed=seed) for seed in (0, 1))
    assert not torch.equal(one, other)
    assert {view.numpy().tobytes() for view in one} == {view.numpy().tobytes() for view in other}


def test_permutation_is_one_for_each_key() -> None:
    for num_views in (162, 9, 2, 1):
        slots = np.arange(num_views)
        for key in combine(seed_key(0), np.arange(50)):
            assert sorted(permuted(slots, np.full(num_views, key), num_views=num_views)) == slots.tolist()


def test_permutation_of_today_is_that_of_tomorrow() -> None:
    keys = combine(seed_key(0), np.arange(4))
    assert permuted(np.arange(4), keys, num_views=162).tolist() == [23, 91, 118, 121]


def test_equal_random_numbers_still_give_different_views(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "combine", lambda keys, counters: np.zeros((len(keys), len(counters)), dtype=np.uint64))
    assert sorted(permuted(np.arange(5), np.zeros(5, dtype=np.uint64), num_views=5)) == [0, 1, 2, 3, 4]


def test_every_view_is_equally_likely_in_every_slot_and_pair_of_slots() -> None:
    num_images, num_views = 40_000, 18
    keys = combine(seed_key(3), np.arange(num_images))
    first, second, last = (
        permuted(np.full(num_images, slot), keys, num_views=num_views) for slot in (0, 1, num_views - 1)
    )
    for column in (first, second, last):
        assert_uniform(np.bincount(column, minlength=num_views))
    pairs = np.bincount(first * num_views + second, minlength=num_views**2).reshape(num_views, num_views)
    assert_uniform(pairs[~np.eye(num_views, dtype=bool)])  # a view never comes twice


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 32), (7, 40), (1, 1), (224, 224)])
def test_rotation_equals_torchvision_pixel_for_pixel(height: int, width: int) -> None:
    special = [0.0, 1e-9, -1e-9, 15.0, -15.0, 30.0, 45.0, -45.0, 90.0, 179.9, 180.0, -180.0]
    random = np.random.default_rng(1).uniform(-15, 15, 60 if height < 100 else 3).tolist()
    degrees = np.array(special + random)
    images = array_split(len(degrees), height, width).images(np.arange(len(degrees))).numpy()
    for image, angle, view in zip(images, degrees.tolist(), rotate(images, degrees), strict=True):
        expected = functional.rotate(Image.fromarray(image), angle)
        assert np.array_equal(view, np.asarray(expected)), angle


@pytest.mark.parametrize("flip", [True, False])
def test_pad_crop_flip_rotate_is_torchvision_crop_flip_and_rotation_of_the_draws(flip: bool) -> None:
    split, rule, slots = array_split(3, height=20, width=28), PadCropFlipRotate(pad=3, flip=flip), np.arange(40)
    views = view_images(split, rule, indices=np.full(40, 1), slots=slots, seed=6)
    draws = uniform_rows(combine(combine(seed_key(6), np.array([1])), slots), 4)
    image = split.images(np.array([1]))[0].numpy()
    for view, (y, x, mirror, angle) in zip(views, draws.tolist(), strict=True):
        cropped = expected_view(image, pad=3, top=int(7 * y), left=int(7 * x), mirrored=flip and mirror < 0.5)
        assert np.array_equal(view.numpy(), np.asarray(functional.rotate(cropped, 30 * angle - 15)))


def test_places_sides_and_angles_of_rotated_views_are_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, np.ndarray] = {}

    def record_crop(images: np.ndarray, *, tops: np.ndarray, lefts: np.ndarray, **others: np.ndarray) -> np.ndarray:
        seen.update(tops=tops, lefts=lefts, mirrored=others["mirrored"])
        return images

    def record_angle(images: np.ndarray, degrees: np.ndarray) -> np.ndarray:
        seen["degrees"] = degrees
        return images

    monkeypatch.setattr(module, "pad_crop_flip", record_crop)
    monkeypatch.setattr(module, "rotate", record_angle)
    views_of(array_split(1, 2, 2), PadCropFlipRotate(pad=4, max_degrees=20), num_slots=20_000)
    assert_uniform(np.bincount(seen["tops"] * 9 + seen["lefts"], minlength=81))
    assert_uniform(np.bincount(seen["mirrored"], minlength=2))
    assert_uniform(np.histogram(seen["degrees"], bins=20, range=(-20, 20))[0])
    assert np.abs(seen["degrees"]).max() <= 20
