"""Splits are disjoint, stratified, seeded, and never part two copies of one image."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import pytest

from compress.data import DataSettings, Digits
from compress.data.source import SPLIT_NAMES, SourceImage, SplitName
from compress.data.splits import Assignment, Content, assign_splits, check_enough_images
from compress.errors import DataError

CLASSES = ("apple", "pear", "plum")


def content(name: object, label: int = 0, split: SplitName | None = None) -> Content:
    sha256 = hashlib.sha256(str(name).encode()).digest()
    return Content(sha256, sha256, label, split)


def settings(**values: Any) -> DataSettings:
    return DataSettings(source=Digits(), **values)


def plain(num_images: int = 100) -> list[Content]:
    """Different images, classes in turn, no splits given."""
    return [content(number, number % len(CLASSES)) for number in range(num_images)]


def counts(contents: list[Content], assignment: Assignment) -> dict[str, Counter[int]]:
    return {split: Counter(contents[place].label for place in places) for split, places in assignment.members.items()}


def assert_each_image_once(contents: list[Content], assignment: Assignment) -> None:
    places = [place for members in assignment.members.values() for place in members] + list(assignment.dropped)
    assert sorted(places) == list(range(len(contents)))


@pytest.mark.parametrize("stratify", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_image_is_in_exactly_one_split(stratify: bool, seed: int) -> None:
    contents = plain()
    assignment = assign_splits(contents, CLASSES, settings=settings(stratify=stratify, seed=seed))
    assert_each_image_once(contents, assignment)
    assert [list(places) == sorted(places) for places in assignment.members.values()] == [True] * 3


def test_stratified_splits_take_the_same_part_of_each_class() -> None:
    contents = [content(number, 0 if number < 200 else 1) for number in range(240)]
    assignment = assign_splits(contents, CLASSES[:2], settings=settings(validation_fraction=0.1, test_fraction=0.2))
    assert counts(contents, assignment) == {
        "train": {0: 140, 1: 28},
        "validation": {0: 20, 1: 4},
        "test": {0: 40, 1: 8},
    }


def test_another_seed_gives_another_draw_and_the_same_seed_the_same() -> None:
    contents = plain()
    one, same, other = (assign_splits(contents, CLASSES, settings=settings(seed=seed)).members for seed in (0, 0, 1))
    assert one == same
    assert one["test"] != other["test"]


def test_draw_depends_on_contents_not_on_their_order() -> None:
    contents = plain()
    backwards = contents[::-1]
    one = assign_splits(contents, CLASSES, settings=settings())
    other = assign_splits(backwards, CLASSES, settings=settings())
    for split in one.members:
        assert {contents[place] for place in one.members[split]} == {backwards[place] for place in other.members[split]}


def test_draw_depends_on_the_source_not_on_what_is_stored_of_it() -> None:
    contents = plain()
    stored_otherwise = [one._replace(sha256=one.sha256[::-1]) for one in contents]
    assert assign_splits(contents, CLASSES, settings=settings()) == assign_splits(
        stored_otherwise, CLASSES, settings=settings()
    )


def test_a_new_image_moves_hardly_any_other() -> None:
    before = plain(300)
    after = [content("new", 1), *before]
    test_before = {before[place] for place in assign_splits(before, CLASSES, settings=settings()).members["test"]}
    test_after = {after[place] for place in assign_splits(after, CLASSES, settings=settings()).members["test"]}
    assert len(test_before - test_after) <= 1


def test_copies_of_one_image_stay_together() -> None:
    contents = [content(number // 2, 0) for number in range(60)] + [content(1000 + number, 1) for number in range(30)]
    assignment = assign_splits(contents, CLASSES[:2], settings=settings())
    split_of = {contents[place].sha256: set[str]() for place in range(len(contents))}
    for split, places in assignment.members.items():
        for place in places:
            split_of[contents[place].sha256].add(split)
    assert all(len(splits) == 1 for splits in split_of.values())
    assert_each_image_once(contents, assignment)


def test_copies_stay_in_train_while_there_are_single_images() -> None:
    contents = [content("copied", 0)] * 50 + [content(f"single{number}", 0) for number in range(50)] + plain(60)[1::3]
    assignment = assign_splits(contents, CLASSES[:2], settings=settings())
    assert set(range(50)) <= set(assignment.members["train"])
    assert counts(contents, assignment)["test"][0] == 20


def test_copies_with_different_labels_stay_together() -> None:
    contents = [content("ambiguous", 0), content("ambiguous", 1), *plain(40)]
    assignment = assign_splits(contents, CLASSES, settings=settings())
    assert sum({0, 1} <= set(places) for places in assignment.members.values()) == 1


def test_given_splits_are_kept_whole() -> None:
    names: list[SplitName] = ["train", "validation", "test"]
    contents = [content(number, number % 3, names[number % 7 % 3]) for number in range(70)]
    assignment = assign_splits(contents, CLASSES, settings=settings())
    for split, places in assignment.members.items():
        assert all(contents[place].split == split for place in places)
    assert_each_image_once(contents, assignment)


@pytest.mark.parametrize(("given", "carved"), [("test", "validation"), ("validation", "test")])
def test_only_the_missing_split_is_carved_out_of_train(given: SplitName, carved: SplitName) -> None:
    contents = [content(number, number % 3, given if number < 30 else "train") for number in range(90)]
    assignment = assign_splits(contents, CLASSES, settings=settings(validation_fraction=0.2, test_fraction=0.2))
    assert assignment.members[given] == tuple(range(30))
    assert len(assignment.members[carved]) == 12  # a fifth of the 60 train images, 4 of each class
    assert set(assignment.members[carved]) < set(range(30, 90))


def test_copies_across_given_splits_are_left_alone_by_default() -> None:
    contents = [content(number, number % 3, "test" if number < 15 else "train") for number in range(90)]
    contents[20] = content(2, 2, "train")  # the same image as the test image 2
    assignment = assign_splits(contents, CLASSES, settings=settings())
    assert assignment.dropped == ()
    assert_each_image_once(contents, assignment)


def test_drop_from_train_drops_what_validation_or_test_has() -> None:
    contents = [content(number, number % 3, "test" if number < 15 else "train") for number in range(90)]
    contents[20] = content(2, 2, "train")
    assignment = assign_splits(contents, CLASSES, settings=settings(duplicates="drop_from_train"))
    assert assignment.dropped == (20,)
    assert_each_image_once(contents, assignment)


def test_smallest_possible_classes_are_in_every_split() -> None:
    contents = [content(number, number % 3) for number in range(9)]
    assignment = assign_splits(contents, CLASSES, settings=settings())
    assert counts(contents, assignment) == {split: {0: 1, 1: 1, 2: 1} for split in SPLIT_NAMES}


def test_large_fractions_leave_an_image_of_each_class_to_train_on() -> None:
    contents = [content(number, number % 3) for number in range(9)]
    assignment = assign_splits(contents, CLASSES, settings=settings(test_fraction=0.6, validation_fraction=0.39))
    assert counts(contents, assignment) == {split: {0: 1, 1: 1, 2: 1} for split in SPLIT_NAMES}


def test_class_of_too_few_images_is_named_with_the_cure() -> None:
    contents = [*plain(60), content("lonely", 3), content("pair", 3)]
    expected = (
        r"1 of 4 classes have too few different images to be in every split \(3 needed; quince: 2\): "
        "add images, or set stratify: false"
    )
    with pytest.raises(DataError, match=expected):
        assign_splits(contents, (*CLASSES, "quince"), settings=settings())


def test_copies_do_not_count_as_different_images() -> None:
    contents = [*plain(60), *[content("same", 3)] * 10]
    with pytest.raises(DataError, match="quince: 1"):
        assign_splits(contents, (*CLASSES, "quince"), settings=settings())


def test_without_stratify_one_image_per_class_is_enough() -> None:
    contents = [content(number, number) for number in range(100)]
    assignment = assign_splits(contents, tuple(map(str, range(100))), settings=settings(stratify=False))
    assert {split: len(places) for split, places in assignment.members.items()} == {
        "train": 70,
        "validation": 10,
        "test": 20,
    }


def test_without_stratify_two_images_can_not_fill_three_splits() -> None:
    with pytest.raises(DataError, match="2 different images can not fill 3 splits"):
        assign_splits([content(1, 0), content(2, 1)], CLASSES[:2], settings=settings(stratify=False))


@pytest.mark.parametrize("split", [None, "train"])
def test_listing_alone_tells_of_too_small_classes(split: SplitName | None) -> None:
    images = [SourceImage(str(number), number % 3, split) for number in range(9)]
    check_enough_images(images, CLASSES, settings=settings())
    with pytest.raises(DataError, match=r"1 of 3 classes have too few .*plum: 2"):
        check_enough_images(images[:-1], CLASSES, settings=settings())
    check_enough_images(images[:-1], CLASSES, settings=settings(stratify=False))


def test_given_splits_need_fewer_images_in_train() -> None:
    held_out: list[SplitName] = ["test", "validation"]
    images = [SourceImage(f"{split}{label}", label, split) for split in ("train", *held_out) for label in range(3)]
    check_enough_images(images, CLASSES, settings=settings())


def test_a_bound_on_train_images_thins_train_only_and_grows_monotonically() -> None:
    contents = plain()
    whole = assign_splits(contents, CLASSES, settings=settings())
    thinned = {
        most: assign_splits(contents, CLASSES, settings=settings(max_train_images_per_class=most)) for most in (3, 7)
    }
    for most, assignment in thinned.items():
        assert counts(contents, assignment)["train"] == dict.fromkeys(range(3), most)
        assert {name: places for name, places in assignment.members.items() if name != "train"} == {
            name: places for name, places in whole.members.items() if name != "train"
        }
    assert set(thinned[3].members["train"]) < set(thinned[7].members["train"]) < set(whole.members["train"])
