"""Every kind of augmentation; run as a program, the digests of some of their views."""

from __future__ import annotations

from compress.data.color_jitter import ColorJitter
from compress.data.rand_augment import RandAugment
from compress.data.views import Augmentation, NoAugmentation, PadCropFlip, PadCropFlipRotate, RandomResizedCropFlip
from tests.compress.data.array_splits import array_split, digest, views_of

STRONG = RandomResizedCropFlip(
    interpolation="random",
    rand_augment=RandAugment(),
    color_jitter=ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    erase_probability=0.5,
)
AUGMENTATIONS = [
    NoAugmentation(),
    PadCropFlip(),
    PadCropFlip(pad=1, flip=False),
    PadCropFlipRotate(),
    RandomResizedCropFlip(),
    STRONG,
]
RANDOM = AUGMENTATIONS[1:]


def name_of(augmentation: Augmentation) -> str:
    return "strong" if augmentation == STRONG else repr(augmentation)


def slots_of(augmentation: Augmentation) -> int:
    return 6 if augmentation.num_views is None else min(6, augmentation.num_views)


def digests() -> list[str]:
    """What another process has to come to as well."""
    split = array_split(3, height=20, width=28)
    return [digest(views_of(split, each, image=2, num_slots=slots_of(each), seed=3)) for each in AUGMENTATIONS]


if __name__ == "__main__":
    print(*digests())
