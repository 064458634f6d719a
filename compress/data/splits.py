"""Which image belongs to which split.

Splits that the source brings are kept; a missing one is carved out of train. The draw depends on the seed and on what
the source holds of each image, so neither renaming a folder nor another size or storage form changes it, and a new
image moves hardly any other. Copies of one image go to the same split; as copies say nothing new, the images that
stand alone are carved out first and copies stay in train as long as there are others.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from compress.data import DataSettings
from compress.data.source import SPLIT_NAMES, SourceImage, SplitName
from compress.errors import DataError

_NUM_NAMED = 5


class Content(NamedTuple):
    """What the splits depend on, of one readable image."""

    sha256: bytes
    """Of what is stored: images with the same one are copies."""
    origin_sha256: bytes
    """Of what the source holds: orders the draw."""
    label: int
    split: SplitName | None
    """The split that the source puts it in."""


@dataclass(frozen=True)
class Assignment:
    """Places of the images of each split, ascending, no image twice."""

    members: dict[SplitName, tuple[int, ...]]
    dropped: tuple[int, ...]
    """Train images left out because validation or test has the same image."""


def check_enough_images(images: Iterable[SourceImage], classes: Sequence[str], *, settings: DataSettings) -> None:
    """What a listing tells already, so that nobody waits for a large data set to be decoded first.

    Raises:
        DataError: as `assign_splits` would, whatever the images contain.
    """
    counts = dict.fromkeys(range(len(classes) if settings.stratify else 1), 0)
    given: set[SplitName | None] = set()
    for image in images:
        given.add(image.split)
        if image.split in (None, "train"):
            counts[image.label if settings.stratify else 0] += 1
    num_splits = 1 + ("validation" not in given) + ("test" not in given)
    _check_enough(counts, classes, num_splits=num_splits, stratify=settings.stratify)


def assign_splits(contents: Sequence[Content], classes: Sequence[str], *, settings: DataSettings) -> Assignment:
    """Give each image its split.

    Raises:
        DataError: a class, or without `stratify` the whole, has too few different images for all splits.
    """
    given: dict[SplitName, list[int]] = defaultdict(list)
    for place, content in enumerate(contents):
        given[content.split or "train"].append(place)
    dropped: list[int] = []
    if settings.duplicates == "drop_from_train":
        held_out = {contents[place].sha256 for name in ("validation", "test") for place in given[name]}
        dropped = [place for place in given["train"] if contents[place].sha256 in held_out]
    pool = sorted(set(given["train"]) - set(dropped))
    fractions: dict[SplitName, float] = {
        "test": settings.test_fraction,
        "validation": settings.validation_fraction,
    }
    missing: dict[SplitName, float] = {name: fraction for name, fraction in fractions.items() if not given[name]}
    carved = _carve(pool, contents, classes=classes, missing=missing, settings=settings)
    taken = {place for places in carved.values() for place in places}
    train = [place for place in pool if place not in taken]
    given["train"] = _thinned(train, contents, settings=settings)
    members: dict[SplitName, tuple[int, ...]] = {
        name: tuple(sorted(carved.get(name, given[name]))) for name in SPLIT_NAMES
    }
    return Assignment(members, tuple(dropped))


def _carve(
    pool: Sequence[int],
    contents: Sequence[Content],
    *,
    classes: Sequence[str],
    missing: dict[SplitName, float],
    settings: DataSettings,
) -> dict[SplitName, list[int]]:
    groups = _copies(pool, contents)
    strata: dict[int, list[list[int]]] = {label: [] for label in range(len(classes) if settings.stratify else 1)}
    for group in groups.values():
        strata[contents[group[0]].label if settings.stratify else 0].append(group)
    counts = {label: len(stratum) for label, stratum in strata.items()}
    _check_enough(counts, classes, num_splits=1 + len(missing), stratify=settings.stratify)
    carved: dict[SplitName, list[int]] = {name: [] for name in missing}
    for stratum in strata.values():
        order = sorted(stratum, key=lambda group: (len(group), _draw(group, contents, seed=settings.seed)))
        num_images = sum(map(len, order))
        for position, (name, fraction) in enumerate(missing.items()):
            wanted = max(1, round(fraction * num_images))
            num_reserved = len(missing) - position  # a group for each split still to fill, train last
            taken: list[int] = []
            while len(taken) < wanted and len(order) > num_reserved:
                taken += order.pop(0)
            carved[name] += taken
    return carved


def _thinned(train: Sequence[int], contents: Sequence[Content], *, settings: DataSettings) -> list[int]:
    """At most so many of each class as the settings allow; a larger number keeps all that a smaller one kept."""
    if settings.max_train_images_per_class is None:
        return list(train)
    classes: dict[int, list[int]] = defaultdict(list)
    for place in sorted(train, key=lambda place: (_draw([place], contents, seed=settings.seed), place)):
        classes[contents[place].label].append(place)
    return [place for places in classes.values() for place in places[: settings.max_train_images_per_class]]


def _copies(pool: Iterable[int], contents: Sequence[Content]) -> dict[bytes, list[int]]:
    groups: dict[bytes, list[int]] = defaultdict(list)
    for place in pool:
        groups[contents[place].sha256].append(place)
    return groups


def _check_enough(counts: Mapping[int, int], classes: Sequence[str], *, num_splits: int, stratify: bool) -> None:
    short = {label: count for label, count in counts.items() if count < num_splits}
    if not short:
        return
    if not stratify:
        raise DataError(f"{short[0]} different images can not fill {num_splits} splits; add images")
    named = ", ".join(f"{classes[label]}: {count}" for label, count in list(short.items())[:_NUM_NAMED])
    raise DataError(
        f"{len(short)} of {len(classes)} classes have too few different images to be in every split "
        f"({num_splits} needed; {named}{', …' if len(short) > _NUM_NAMED else ''}): "
        "add images, or set stratify: false for one random draw over all images"
    )


def _draw(group: Iterable[int], contents: Sequence[Content], *, seed: int) -> bytes:
    origin = min(contents[place].origin_sha256 for place in group)
    return hashlib.sha256(f"{seed}:".encode() + origin).digest()
