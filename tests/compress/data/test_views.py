"""Views: a pure function of seed, image and slot, whatever the augmentation."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from compress.data import DataSettings, ImageFolder
from compress.data.prepare import prepare
from compress.data.prepared import PreparedSplit, load_prepared
from compress.data.views import (
    Augmentation,
    NoAugmentation,
    PadCropFlip,
    PadCropFlipRotate,
    RandomResizedCropFlip,
    view_images,
)
from tests.compress.data.array_splits import array_split, digest, views_of
from tests.compress.data.augmentations import AUGMENTATIONS, RANDOM, STRONG, digests, name_of, slots_of
from tests.compress.data.pictures import encoded, smooth, write_files

ROOT = Path(__file__).parents[3]
NUM_IMAGES = 28


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


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=name_of)
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


def test_another_process_makes_the_same_views() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "17"}
    command = [sys.executable, "-m", "tests.compress.data.augmentations"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    assert run.stdout.decode().split() == digests()


@pytest.mark.parametrize(
    ("augmentation", "expected"),
    [
        (PadCropFlip(), "61564b7041c77193"),
        (PadCropFlip(pad=1, flip=False), "0d887db53cb67428"),
        (RandomResizedCropFlip(), "e40679ec316b1c92"),
        (RandomResizedCropFlip(interpolation="bicubic", min_scale=0.3, flip=False), "1bc282f76635bc91"),
    ],
    ids=repr,
)
def test_views_of_today_are_those_of_tomorrow(augmentation: Augmentation, expected: str) -> None:
    # Stored teacher logits belong to these views: a change here makes them wrong without anyone noticing.
    indices, slots = np.repeat(np.arange(5), 6), np.tile(np.arange(6), 5)
    views = view_images(array_split(5, height=20, width=28), augmentation, indices=indices, slots=slots, seed=3)
    assert digest(views) == expected


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=name_of)
def test_views_are_bytes_of_the_size_of_the_split(split: PreparedSplit, augmentation: Augmentation) -> None:
    views = view_images(split, augmentation, indices=np.arange(3), slots=np.zeros(3, dtype=np.int64), seed=0)
    assert views.dtype == torch.uint8
    assert views.shape == (3, 16, 16, 3)
    assert views.is_contiguous()


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=name_of)
def test_no_index_gives_no_view(split: PreparedSplit, augmentation: Augmentation) -> None:
    nothing = np.array([], dtype=np.int64)
    assert view_images(split, augmentation, indices=nothing, slots=nothing, seed=0).shape == (0, 16, 16, 3)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=name_of)
def test_another_image_has_other_views_of_its_own(split: PreparedSplit, augmentation: Augmentation) -> None:
    zeros = np.zeros(NUM_IMAGES, dtype=np.int64)
    views = view_images(split, augmentation, indices=np.arange(NUM_IMAGES), slots=zeros, seed=0)
    assert len({view.numpy().tobytes() for view in views}) == NUM_IMAGES


@pytest.mark.parametrize("augmentation", RANDOM, ids=name_of)
def test_another_seed_gives_other_views(augmentation: Augmentation) -> None:
    one, other = (views_of(array_split(1), augmentation, seed=seed) for seed in (0, 1))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=name_of)
def test_making_views_leaves_the_images_alone(augmentation: Augmentation) -> None:
    split = array_split(2)
    before = digest(split.images(np.arange(2)))
    views_of(split, augmentation, num_slots=slots_of(augmentation))
    assert digest(split.images(np.arange(2))) == before


def test_without_augmentation_a_view_is_the_image(split: PreparedSplit) -> None:
    indices = np.array([3, 1])
    views = view_images(split, NoAugmentation(), indices=indices, slots=np.zeros(2, dtype=np.int64), seed=9)
    assert torch.equal(views, split.images(indices))


@pytest.mark.parametrize(
    ("augmentation", "num_views"),
    [
        (PadCropFlip(), 162),
        (PadCropFlip(flip=False), 81),
        (PadCropFlip(pad=1, flip=False), 9),
        (PadCropFlip(pad=0), 2),
        (PadCropFlip(pad=0, flip=False), 1),
        (NoAugmentation(), 1),
        (PadCropFlipRotate(), None),
        (RandomResizedCropFlip(), None),
        (STRONG, None),
    ],
    ids=lambda value: name_of(value) if isinstance(value, RandomResizedCropFlip) else repr(value),
)
def test_slots_of_one_image_are_all_different_views(augmentation: Augmentation, num_views: int | None) -> None:
    assert augmentation.num_views == num_views
    split, num_slots = array_split(3), num_views or 100
    for image in range(3):
        views = views_of(split, augmentation, image=image, num_slots=num_slots, seed=1)
        num_different = len({view.numpy().tobytes() for view in views})
        # Draws without end may fall on the same crop of a small image.
        assert num_different == num_views if num_views else num_different > 90


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


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=name_of)
def test_index_that_does_not_exist_is_an_error(augmentation: Augmentation) -> None:
    with pytest.raises(IndexError):
        view_images(array_split(2), augmentation, indices=np.array([2]), slots=np.array([0]), seed=0)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=name_of)
def test_an_augmentation_survives_its_own_json(augmentation: Augmentation) -> None:
    adapter = TypeAdapter(Augmentation)
    assert adapter.validate_json(adapter.dump_json(augmentation)) == augmentation


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "random_resized_crop_flip", "min_scale": 0.9, "max_scale": 0.5}, "min_scale 0.9 is above max_scale"),
        ({"name": "random_resized_crop_flip", "min_ratio": 2, "max_ratio": 1}, "min_ratio 2.0 is above max_ratio"),
        ({"name": "random_resized_crop_flip", "erase_probability": 0}, "erase_probability"),
        ({"name": "random_resized_crop_flip", "erase_probability": 1.5}, "erase_probability"),
        ({"name": "random_resized_crop_flip", "interpolation": "nearest"}, "'bilinear', 'bicubic' or 'random'"),
        ({"name": "random_resized_crop_flip", "color_jitter": {}}, "color_jitter with zeros changes nothing; set"),
        ({"name": "random_resized_crop_flip", "color_jitter": {"hue": 0.6}}, "hue"),
        ({"name": "random_resized_crop_flip", "rand_augment": {"probability": 0}}, "probability"),
        ({"name": "random_resized_crop_flip", "rand_augment": {"num_ops": 0}}, "num_ops"),
        ({"name": "random_resized_crop_flip", "rand_augment": {"magnitude": 11}}, "magnitude"),
        ({"name": "random_resized_crop_flip", "rand_augment": {"fill": [0, 0, 256]}}, "fill"),
        ({"name": "pad_crop_flip", "pad": -1}, "pad"),
        ({"name": "pad_crop_flip", "max_degrees": 15}, "max_degrees"),
        ({"name": "pad_crop_flip_rotate", "max_degrees": 0}, "max_degrees"),
        ({"name": "pad_crop_flip_rotate", "max_degrees": 181}, "max_degrees"),
        ({"name": "crop"}, "'none', 'pad_crop_flip', 'pad_crop_flip_rotate', 'random_resized_crop_flip'"),
    ],
    ids=repr,
)
def test_augmentation_that_can_not_be_meant_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(Augmentation).validate_python(values)
