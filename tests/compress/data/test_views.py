"""Views: a pure function of seed, image and slot, equal to the usual augmentations pixel for pixel."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torchvision.transforms import functional

from compress.data import DataSettings, ImageFolder
from compress.data import views as module
from compress.data.counter_hash import combine, seed_key, uniforms
from compress.data.prepare import prepare
from compress.data.prepared import ArraySplit, PreparedSplit, load_prepared
from compress.data.views import (
    Augmentation,
    NoAugmentation,
    PadCropFlip,
    RandomResizedCropFlip,
    pad_crop_flip,
    permuted,
    view_images,
)
from tests.compress.data.pictures import encoded, smooth, write_files

NUM_IMAGES = 28
AUGMENTATIONS = [NoAugmentation(), PadCropFlip(), PadCropFlip(pad=1, flip=False), RandomResizedCropFlip()]


def array_split(num_images: int = 20, height: int = 32, width: int = 32) -> ArraySplit:
    pixels = np.random.default_rng(0).integers(0, 256, (num_images, height, width, 3), dtype=np.uint8)
    return ArraySplit(pixels, np.zeros(num_images, dtype=np.int64))


@pytest.fixture(scope="module", params=["arrays", "encoded"])
def split(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreparedSplit:
    folder: Path = tmp_path_factory.mktemp("photos")
    files = {
        f"{name}/{place:02d}.jpg": encoded(smooth(100 * number + place, 40 + place, 30), "JPEG")
        for number, name in enumerate(("cat", "dog"))
        for place in range(20)
    }
    images = write_files(folder / "images", files)
    settings = DataSettings(source=ImageFolder(path=images), image_size=16, storage=request.param)
    prepare(settings, folder / "prepared")
    train = load_prepared(folder / "prepared").split("train")
    assert len(train) == NUM_IMAGES
    return train


def slots_of(augmentation: Augmentation) -> int:
    return 6 if augmentation.num_views is None else min(6, augmentation.num_views)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=repr)
def test_a_view_does_not_depend_on_its_batch_or_place(split: PreparedSplit, augmentation: Augmentation) -> None:
    pairs = list(itertools.product(range(NUM_IMAGES), range(slots_of(augmentation))))
    indices, slots = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    together = view_images(split, augmentation, indices=indices, slots=slots, seed=5)
    order = np.random.default_rng(0).permutation(len(pairs))
    for places in np.array_split(order, 9):
        part = view_images(split, augmentation, indices=indices[places], slots=slots[places], seed=5)
        assert torch.equal(part, together[torch.from_numpy(places)])
    alone = view_images(split, augmentation, indices=indices[7:8], slots=slots[7:8], seed=5)
    assert torch.equal(alone[0], together[7])


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=repr)
def test_views_are_bytes_of_the_size_of_the_split(split: PreparedSplit, augmentation: Augmentation) -> None:
    views = view_images(split, augmentation, indices=np.arange(3), slots=np.zeros(3, dtype=np.int64), seed=0)
    assert views.dtype == torch.uint8
    assert views.shape == (3, 16, 16, 3)
    assert views.is_contiguous()


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=repr)
def test_no_index_gives_no_view(split: PreparedSplit, augmentation: Augmentation) -> None:
    nothing = np.array([], dtype=np.int64)
    assert view_images(split, augmentation, indices=nothing, slots=nothing, seed=0).shape == (0, 16, 16, 3)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=repr)
def test_another_image_has_other_views_of_its_own(split: PreparedSplit, augmentation: Augmentation) -> None:
    zeros = np.zeros(NUM_IMAGES, dtype=np.int64)
    views = view_images(split, augmentation, indices=np.arange(NUM_IMAGES), slots=zeros, seed=0)
    assert len({view.numpy().tobytes() for view in views}) == NUM_IMAGES


def test_without_augmentation_a_view_is_the_image(split: PreparedSplit) -> None:
    indices = np.array([3, 1])
    views = view_images(split, NoAugmentation(), indices=indices, slots=np.zeros(2, dtype=np.int64), seed=9)
    assert torch.equal(views, split.images(indices))


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
        padded = functional.pad(Image.fromarray(images[image]), [4, 4, 4, 4])
        expected = functional.crop(padded, top, left, 32, 32)
        expected = functional.hflip(expected) if mirrored else expected
        assert np.array_equal(view, np.asarray(expected))
        num_compared += 1
    assert num_compared == 3 * 162


@pytest.mark.parametrize(
    ("augmentation", "num_views"),
    [
        (PadCropFlip(), 162),
        (PadCropFlip(flip=False), 81),
        (PadCropFlip(pad=1, flip=False), 9),
        (PadCropFlip(pad=0), 2),
        (PadCropFlip(pad=0, flip=False), 1),
        (NoAugmentation(), 1),
        (RandomResizedCropFlip(), None),
    ],
    ids=repr,
)
def test_slots_of_one_image_are_all_different_views(augmentation: Augmentation, num_views: int | None) -> None:
    assert augmentation.num_views == num_views
    split, num_slots = array_split(3), num_views or 100
    for image in range(3):
        indices = np.full(num_slots, image, dtype=np.int64)
        views = view_images(split, augmentation, indices=indices, slots=np.arange(num_slots), seed=1)
        num_different = len({view.numpy().tobytes() for view in views})
        # Draws without end may fall on the same crop of a small image.
        assert num_different == num_views if num_views else num_different > 90


def test_pad_crop_flip_of_a_wide_image() -> None:
    split = array_split(2, height=8, width=20)
    views = view_images(split, PadCropFlip(pad=2), indices=np.zeros(50, dtype=np.int64), slots=np.arange(50), seed=0)
    assert views.shape == (50, 8, 20, 3)
    assert len({view.numpy().tobytes() for view in views}) == 50


def test_another_seed_gives_another_order_of_views() -> None:
    split, slots = array_split(2), np.arange(162)
    indices = np.zeros(162, dtype=np.int64)
    one, other = (view_images(split, PadCropFlip(), indices=indices, slots=slots, seed=seed) for seed in (0, 1))
    assert not torch.equal(one, other)
    assert {view.numpy().tobytes() for view in one} == {view.numpy().tobytes() for view in other}


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**70 + 3])
def test_seeds_of_any_size_are_taken(seed: int) -> None:
    view_images(array_split(2), PadCropFlip(), indices=np.array([1]), slots=np.array([161]), seed=seed)


@pytest.mark.parametrize(
    ("augmentation", "slot", "message"),
    [
        (PadCropFlip(), 162, r"slots 162\.\.162: pad_crop_flip has the views 0\.\.161"),
        (NoAugmentation(), 1, r"none has the views 0\.\.0"),
        (RandomResizedCropFlip(), -1, r"slots -1\.\.-1"),
    ],
    ids=repr,
)
def test_slot_that_does_not_exist_is_an_error(augmentation: Augmentation, slot: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        view_images(array_split(2), augmentation, indices=np.array([0]), slots=np.array([slot]), seed=0)


def test_index_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(IndexError):
        view_images(array_split(2), PadCropFlip(), indices=np.array([2]), slots=np.array([0]), seed=0)


def test_permutation_is_one_for_each_key() -> None:
    for num_views in (162, 9, 2, 1):
        slots = np.arange(num_views)
        for key in combine(seed_key(0), np.arange(50)):
            assert sorted(permuted(slots, np.full(num_views, key), num_views=num_views)) == slots.tolist()


def test_equal_random_numbers_still_give_different_views(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "combine", lambda keys, counters: np.zeros((len(keys), len(counters)), dtype=np.uint64))
    assert sorted(permuted(np.arange(5), np.zeros(5, dtype=np.uint64), num_views=5)) == [0, 1, 2, 3, 4]


def test_every_view_is_equally_likely_in_every_slot_and_pair_of_slots() -> None:
    # Chi-square over many images: mean = degrees of freedom, sd = sqrt(2 * that); 5 sd is a false alarm in 10**6.
    num_images, num_views = 40_000, 18
    keys = combine(seed_key(3), np.arange(num_images))
    first, second, last = (
        permuted(np.full(num_images, slot), keys, num_views=num_views) for slot in (0, 1, num_views - 1)
    )
    for column in (first, second, last):
        assert_uniform(np.bincount(column, minlength=num_views))
    pairs = np.bincount(first * num_views + second, minlength=num_views**2).reshape(num_views, num_views)
    assert_uniform(pairs[~np.eye(num_views, dtype=bool)])  # a view never comes twice


def assert_uniform(counts: np.ndarray) -> None:
    expected, freedom = counts.sum() / len(counts), len(counts) - 1
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_hash_is_splitmix64() -> None:
    # The first outputs of the reference implementation (S. Vigna, splitmix64.c) for the state 1234567.
    state = np.array([1234567], dtype=np.uint64)
    outputs = combine(state, np.arange(3))
    assert outputs.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniforms_fill_the_unit_interval() -> None:
    numbers = uniforms(combine(seed_key(0), np.arange(20_000)))
    assert 0 <= numbers.min() < 0.001
    assert 0.999 < numbers.max() < 1
    assert_uniform(np.histogram(numbers, bins=20, range=(0, 1))[0])


def test_views_of_today_are_those_of_tomorrow() -> None:
    # Stored teacher logits belong to these views: a change here makes them wrong without anyone noticing.
    keys = combine(seed_key(0), np.arange(4))
    assert permuted(np.arange(4), keys, num_views=162).tolist() == [23, 91, 118, 121]
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


def test_random_resized_crop_equals_torchvision_for_the_same_box(split: PreparedSplit) -> None:
    rule, index, slot = RandomResizedCropFlip(interpolation="bicubic"), 4, 11
    view = view_images(split, rule, indices=np.array([index]), slots=np.array([slot]), seed=2)[0]
    keys = combine(combine(seed_key(2), np.array([index])), np.array([slot]))
    draws = uniforms(combine(keys[:, None], np.arange(41)))[0]
    picture = split.picture(index)
    left, top, right, bottom = rule.draw_box(picture.width, picture.height, draws=draws)
    expected = functional.resized_crop(
        picture, top, left, bottom - top, right - left, [16, 16], functional.InterpolationMode.BICUBIC
    )
    expected = functional.hflip(expected) if draws[-1] < 0.5 else expected
    assert np.array_equal(view.numpy(), np.asarray(expected))


def test_about_half_of_the_random_crops_are_mirrored() -> None:
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8)[None, None, :, None] * 8, (1, 32, 32, 3)).copy()
    split = ArraySplit(ramp, np.zeros(1, dtype=np.int64))
    indices = np.zeros(200, dtype=np.int64)
    views = view_images(split, RandomResizedCropFlip(), indices=indices, slots=np.arange(200), seed=0).int()
    num_mirrored = int((views[:, 16, 0, 0] > views[:, 16, -1, 0]).sum())
    assert 70 < num_mirrored < 130  # 4 standard deviations
    unmirrored = view_images(split, RandomResizedCropFlip(flip=False), indices=indices, slots=np.arange(200), seed=0)
    assert (unmirrored.int()[:, 16, 0, 0] < unmirrored.int()[:, 16, -1, 0]).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "random_resized_crop_flip", "min_scale": 0.9, "max_scale": 0.5}, "min_scale 0.9 is above max_scale"),
        ({"name": "random_resized_crop_flip", "min_ratio": 2, "max_ratio": 1}, "min_ratio 2.0 is above max_ratio"),
        ({"name": "pad_crop_flip", "pad": -1}, "pad"),
        ({"name": "crop"}, "'none', 'pad_crop_flip', 'random_resized_crop_flip'"),
    ],
)
def test_augmentation_that_can_not_be_meant_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(Augmentation).validate_python(values)
