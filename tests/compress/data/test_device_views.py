"""Views made in torch are the bits of those made in numpy."""

import numpy as np
import pytest
import torch

from compress.data import counter_hash
from compress.data.device_views import combine, is_made_here, make_views, mix, view_numbers
from compress.data.pad_crop import PadCropFlip, PadCropFlipRotate
from compress.data.prepared import ArraySplit
from compress.data.views import Augmentation, NoAugmentation, RandomResizedCropFlip, view_images

SIZES = [(32, 32), (7, 5)]


def colors_of(pixels: np.ndarray) -> torch.Tensor:
    return torch.cat([torch.from_numpy(pixels).view(-1, 3), torch.zeros(1, 3, dtype=torch.uint8)])


def test_hashes_are_those_of_numpy_for_every_pattern_of_bits() -> None:
    values = np.random.default_rng(0).integers(0, 2**64, 2000, dtype=np.uint64)
    values = np.concatenate([values, np.array([0, 1, 2**63 - 1, 2**63, 2**64 - 1], dtype=np.uint64)])
    signed = torch.from_numpy(values.view(np.int64))
    assert np.array_equal(mix(signed).numpy().view(np.uint64), counter_hash.mix(values))
    counters = np.arange(len(values))
    expected = counter_hash.combine(values, counters)
    assert np.array_equal(combine(signed, torch.from_numpy(counters)).numpy().view(np.uint64), expected)


@pytest.mark.parametrize("size", SIZES, ids=["square", "not square"])
@pytest.mark.parametrize(
    "augmentation",
    [PadCropFlip(), PadCropFlip(pad=1, flip=False), PadCropFlip(pad=0), PadCropFlip(pad=9), NoAugmentation()],
    ids=["cifar", "no flip", "no pad", "pad beyond the image", "none"],
)
def test_views_are_those_of_numpy(augmentation: PadCropFlip | NoAugmentation, size: tuple[int, int]) -> None:
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (40, *size, 3), dtype=np.uint8)
    split = ArraySplit(pixels, np.zeros(40, dtype=np.int64))
    indices = random.integers(0, 40, 300)
    slots = random.integers(0, augmentation.num_views, 300)
    for seed in (0, 123, 2**64 - 1):
        expected = view_images(split, augmentation, indices=indices, slots=slots, seed=seed)
        on_device = torch.from_numpy(indices), torch.from_numpy(slots)
        numbers = view_numbers(augmentation, *on_device, seed=seed)
        views = make_views(colors_of(pixels), size, augmentation, indices=on_device[0], numbers=numbers)
        assert torch.equal(views, expected)


def test_numbering_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    indices, slots = torch.arange(100), torch.arange(100) % 162
    whole = view_numbers(PadCropFlip(), indices, slots, seed=3)
    monkeypatch.setattr("compress.data.device_views._LARGEST_TABLE", 1000)
    assert torch.equal(view_numbers(PadCropFlip(), indices, slots, seed=3), whole)


@pytest.mark.parametrize(
    ("augmentation", "made"),
    [(PadCropFlip(), True), (NoAugmentation(), True), (PadCropFlipRotate(), False), (RandomResizedCropFlip(), False)],
)
def test_what_needs_pictures_or_pillow_is_left_to_the_host(augmentation: Augmentation, made: bool) -> None:
    assert is_made_here(augmentation) == made
