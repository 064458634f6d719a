"""Which view is seen when: none twice before all were seen, and what that is worth in words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compress.data.prepared import ArraySplit
from compress.data.view_schedule import ViewSettings
from compress.data.views import (
    Augmentation,
    NoAugmentation,
    PadCropFlip,
    PadCropFlipRotate,
    RandomResizedCropFlip,
    view_images,
)
from tests.compress.data.array_splits import array_split
from tests.compress.data.augmentations import STRONG


def seen(views: ViewSettings, epochs: range, num_images: int = 5) -> list[list[bytes]]:
    """Every view of every image, by image and epoch."""
    split = array_split(num_images, height=33, width=37)
    batches = [
        view_images(
            split,
            views.augmentation,
            indices=np.arange(num_images),
            slots=views.slots(num_images, epoch),
            seed=views.seed,
        )
        for epoch in epochs
    ]
    return [[batch[image].numpy().tobytes() for batch in batches] for image in range(num_images)]


@pytest.mark.parametrize(
    "augmentation", [PadCropFlip(), PadCropFlip(pad=1, flip=False), PadCropFlipRotate(), STRONG], ids=lambda x: x.name
)
@pytest.mark.parametrize("views_per_image", [1, 5, 9])
def test_no_view_comes_twice_within_as_many_epochs_as_views(augmentation: Augmentation, views_per_image: int) -> None:
    views = ViewSettings(augmentation=augmentation, views_per_image=views_per_image, seed=4)
    for image in seen(views, range(2 * views_per_image)):
        first, second = image[:views_per_image], image[views_per_image:]
        assert len(set(first)) == views_per_image
        assert first == second  # then they come again, in the same order


def test_all_162_views_come_before_one_comes_again() -> None:
    views = ViewSettings(augmentation=PadCropFlip(), views_per_image=500)
    assert views.num_slots == 162
    for image in seen(views, range(162), num_images=2):
        assert len(set(image)) == 162


def test_with_as_many_views_as_epochs_each_epoch_is_a_fair_draw_of_all_views() -> None:
    # Over images, the shifts of one epoch's views have the mean and spread of a uniform draw.
    num_images = 4000
    positions = np.zeros((num_images, 9, 9, 3), dtype=np.uint8)
    positions[:, 4, 4] = 255
    split = ArraySplit(positions, np.zeros(num_images, dtype=np.int64))
    views = ViewSettings(augmentation=PadCropFlip(flip=False), views_per_image=200)
    for epoch in (0, 57):
        batch = view_images(
            split,
            views.augmentation,
            indices=np.arange(num_images),
            slots=views.slots(num_images, epoch),
            seed=views.seed,
        )
        counts = (batch[..., 0] > 0).sum(dim=0)
        expected = num_images / 81
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi_square - 80) < 5 * (2 * 80) ** 0.5
        assert torch.equal(counts.sum(), torch.tensor(num_images))


@pytest.mark.parametrize(
    ("augmentation", "views_per_image", "num_epochs", "expected"),
    [
        (NoAugmentation(), 16, 30, "none: every epoch shows each image in its only view"),
        (
            PadCropFlip(),
            16,
            240,
            "pad_crop_flip: 240 epochs show each image in 16 distinct views, 15 times each; "
            "views_per_image 162 would be as online augmentation",
        ),
        (
            PadCropFlip(),
            162,
            240,
            "pad_crop_flip: 240 epochs show each image in all its 162 views, 1 or 2 times each, "
            "statistically as online augmentation",
        ),
        (
            RandomResizedCropFlip(),
            100,
            100,
            "random_resized_crop_flip: 100 epochs show each image in 100 distinct views, as online augmentation: "
            "a new one every epoch",
        ),
        (
            RandomResizedCropFlip(),
            8,
            20,
            "random_resized_crop_flip: 20 epochs show each image in 8 distinct views, 2 or 3 times each; "
            "views_per_image 20 would be as online augmentation",
        ),
        (
            RandomResizedCropFlip(),
            8,
            1,
            "random_resized_crop_flip: 1 epoch shows each image in 1 distinct view, as online augmentation: "
            "a new one every epoch",
        ),
    ],
    ids=repr,
)
def test_description_counts_the_views_that_are_seen(
    augmentation: Augmentation, views_per_image: int, num_epochs: int, expected: str
) -> None:
    views = ViewSettings(augmentation=augmentation, views_per_image=views_per_image)
    assert views.describe(num_epochs) == expected


@pytest.mark.parametrize("num_epochs", [1, 3, 9, 20])
@pytest.mark.parametrize("views_per_image", [1, 3, 9, 50])
def test_the_number_in_the_description_is_the_number_of_views_seen(views_per_image: int, num_epochs: int) -> None:
    views = ViewSettings(augmentation=PadCropFlip(pad=1, flip=False), views_per_image=views_per_image)
    num_distinct = len(set(seen(views, range(num_epochs), num_images=1)[0]))
    text = views.describe(num_epochs)
    assert f"in {num_distinct} distinct view" in text or f"all its {num_distinct} views" in text
