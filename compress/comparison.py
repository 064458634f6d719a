"""Where two exported files answer differently: a float32 file and its 8-bit form, or two students.

Each picture goes to each file by that file's own preprocessing, alone. A disagreement is judged by its margin: by how
much, in logits, a file prefers its own class to the other file's. Where the first file's margin is within twice the
usual difference between the two, that difference explains the disagreement; where it is not, the picture deserves a
look.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple, final

import numpy as np
from pydantic import JsonValue

from compress.data.decoding import DEFAULT_MAX_PIXELS, Pixels, UnreadableImageError, decode
from compress.data.preprocessing import Preprocessing
from compress.data.threads import map_in_threads
from compress.errors import DataError
from compress.picture_sheet import Cell, write_sheet
from compress.predictions import Picture, Prediction, Score, best_classes, load_pixels, preprocessing_of
from compress.runtime import OnnxPredictor

MAX_ON_SHEET = 60
USUAL_FACTOR = 2.0
"""Two logits that move by up to e each can change places when they are less than 2e apart."""


@final
@dataclass(frozen=True, eq=False)
class Disagreement:
    """One picture that the two files answer differently."""

    picture: Picture = field(repr=False)
    truth: str | None
    """Name of the class folder it lies in."""
    first: Score
    second: Score
    first_margin: float
    """Logits by which the first file prefers its class to the second file's."""
    second_margin: float
    """The same the other way round."""
    max_abs: float
    """Largest difference of a logit on this picture."""

    @property
    def weight(self) -> float:
        """How sure both are: the smaller margin."""
        return min(self.first_margin, self.second_margin)


@final
@dataclass(frozen=True, eq=False)
class Comparison:
    """Two files on the same pictures."""

    num_images: int
    """Pictures that both answered."""
    problems: tuple[Prediction, ...]
    """Pictures that could not be used."""
    agreement: float
    """Share of pictures with the same class, in [0, 1]."""
    max_abs: float
    """Largest difference of a logit."""
    typical_abs: float
    """Median over the pictures of their largest difference."""
    largest_logit: float
    """Of the first file, in magnitude: the scale of the two numbers above."""
    num_labelled: int
    """Pictures that lie in a folder with the name of a class."""
    accuracies: tuple[float, float] | None
    """Top-1 on those, of the first and the second file; None where there are none."""
    disagreements: tuple[Disagreement, ...]
    """The surest first."""

    def is_usual(self, disagreement: Disagreement) -> bool:
        """Whether the first file was so undecided that the usual difference between the two explains it."""
        return disagreement.first_margin <= USUAL_FACTOR * self.typical_abs

    @property
    def num_usual(self) -> int:
        """Disagreements that the usual difference explains."""
        return sum(map(self.is_usual, self.disagreements))


class _Answers(NamedTuple):
    picture: Picture
    first: np.ndarray
    second: np.ndarray


@dataclass
class _Sums:
    """What is known so far."""

    differences: list[float] = field(default_factory=list[float])
    largest_logit: float = 0.0
    num_labelled: int = 0
    num_right: list[int] = field(default_factory=lambda: [0, 0])
    disagreements: list[Disagreement] = field(default_factory=list[Disagreement])
    problems: list[Prediction] = field(default_factory=list[Prediction])


def compare(
    first: OnnxPredictor, second: OnnxPredictor, pictures: Iterable[Picture], *, names: tuple[str, str] = ("a", "b")
) -> Comparison:
    """Answer every picture with both files; only numbers and the names of those that differ are kept.

    Raises:
        DataError: the files have other classes, or no picture could be used.
        ArtifactError: a file does not say how pictures become images.
    """
    if set(first.classes) != set(second.classes):
        raise DataError(
            f"{names[0]} and {names[1]} have other classes ({_few(first.classes)} and {_few(second.classes)}); compare "
            "files of the same task"
        )
    rules = preprocessing_of(names[0], first), preprocessing_of(names[1], second)
    order = [second.classes.index(name) for name in first.classes]
    sums = _Sums()
    for answers in _answer(first, second, pictures, rules):
        if isinstance(answers, Prediction):
            sums.problems.append(answers)
        else:
            _add_(sums, answers._replace(second=answers.second[order]), first.classes)
    return _finished(sums)


def _answer(
    first: OnnxPredictor,
    second: OnnxPredictor,
    pictures: Iterable[Picture],
    rules: tuple[Preprocessing, Preprocessing],
) -> Iterator[_Answers | Prediction]:
    for picture, *inputs in map_in_threads(partial(_load, rules=rules), pictures):
        problem = next((each for each in inputs if isinstance(each, UnreadableImageError)), None)
        if problem is not None:
            yield Prediction(picture.name, (), str(problem))
            continue
        pixels = [np.asarray(each)[None] for each in inputs]
        answers = _Answers(picture, first(pixels[0])[0], second(pixels[1])[0])
        if np.isfinite(answers.first).all() and np.isfinite(answers.second).all():
            yield answers
        else:
            yield Prediction(picture.name, (), "an answer holds NaN or infinity")


def _load(
    picture: Picture, *, rules: tuple[Preprocessing, Preprocessing]
) -> tuple[Picture, Pixels | UnreadableImageError, Pixels | UnreadableImageError]:
    first = load_pixels(picture, rules[0])
    return picture, first, first if rules[0] == rules[1] else load_pixels(picture, rules[1])


def _add_(sums: _Sums, answers: _Answers, classes: tuple[str, ...]) -> None:
    first, second = answers.first, answers.second
    max_abs = float(np.abs(first.astype(np.float64) - second).max())
    sums.differences.append(max_abs)
    sums.largest_logit = max(sums.largest_logit, float(np.abs(first).max()))
    places = int(first.argmax()), int(second.argmax())
    truth = _class_folder(answers.picture, classes)
    if truth is not None:
        sums.num_labelled += 1
        for side, place in enumerate(places):
            sums.num_right[side] += classes[place] == truth
    if places[0] != places[1]:
        sums.disagreements.append(
            Disagreement(
                picture=answers.picture,
                truth=truth,
                first=best_classes(first, classes, 1)[0],
                second=best_classes(second, classes, 1)[0],
                first_margin=float(first[places[0]] - first[places[1]]),
                second_margin=float(second[places[1]] - second[places[0]]),
                max_abs=max_abs,
            )
        )


def _class_folder(picture: Picture, classes: tuple[str, ...]) -> str | None:
    """The nearest folder above a picture that is named for a class."""
    return next((parent.name for parent in PurePosixPath(picture.name).parents if parent.name in classes), None)


def _finished(sums: _Sums) -> Comparison:
    num_images = len(sums.differences)
    if num_images == 0:
        reason = f"; the first: {sums.problems[0].image}: {sums.problems[0].problem}" if sums.problems else ""
        raise DataError(f"no picture could be used{reason}")
    right = sums.num_right
    return Comparison(
        num_images=num_images,
        problems=tuple(sums.problems),
        agreement=1 - len(sums.disagreements) / num_images,
        max_abs=max(sums.differences),
        typical_abs=statistics.median(sums.differences),
        largest_logit=sums.largest_logit,
        num_labelled=sums.num_labelled,
        accuracies=(right[0] / sums.num_labelled, right[1] / sums.num_labelled) if sums.num_labelled else None,
        disagreements=tuple(sorted(sums.disagreements, key=lambda each: (-each.weight, each.picture.name))),
    )


def as_json(comparison: Comparison) -> dict[str, JsonValue]:
    """The comparison as a value for a file; margins and differences in logits."""
    accuracies = comparison.accuracies
    return {
        "num_images": comparison.num_images,
        "agreement": comparison.agreement,
        "max_abs": comparison.max_abs,
        "typical_abs": comparison.typical_abs,
        "largest_logit": comparison.largest_logit,
        "num_labelled": comparison.num_labelled,
        "accuracy_a": None if accuracies is None else accuracies[0],
        "accuracy_b": None if accuracies is None else accuracies[1],
        "disagreements": [
            {
                "image": each.picture.name,
                "truth": each.truth,
                "a": each.first._asdict(),
                "b": each.second._asdict(),
                "margin_a": each.first_margin,
                "margin_b": each.second_margin,
                "max_abs": each.max_abs,
                "is_usual": comparison.is_usual(each),
            }
            for each in comparison.disagreements
        ],
        "problems": [{"image": each.image, "problem": each.problem} for each in comparison.problems],
    }


def write_differences(path: Path, comparison: Comparison, *, names: tuple[str, str]) -> None:
    """A sheet of the pictures that the files disagree about, the surest disagreements first.

    Raises:
        ArtifactError: the file cannot be written.
    """
    shown = comparison.disagreements[:MAX_ON_SHEET]
    of_all = f"{len(comparison.disagreements)} of {comparison.num_images} pictures answered differently"
    part = f", the surest {len(shown)} shown" if len(shown) < len(comparison.disagreements) else ""
    title = f"{of_all}{part}; a: {names[0]}, b: {names[1]}"
    write_sheet(path, [_cell(comparison, each) for each in shown], title=title)


def _cell(comparison: Comparison, each: Disagreement) -> Cell:
    # Read again: kept in memory they would fill it.
    picture = decode(each.picture.read(), max_pixels=DEFAULT_MAX_PIXELS, alpha_background="white")
    return Cell(
        picture,
        (
            each.picture.name,
            f"a: {each.first.label} {each.first.score:.2f}, by {each.first_margin:.2g}",
            f"b: {each.second.label} {each.second.score:.2f}, by {each.second_margin:.2g}",
            ("usual difference" if comparison.is_usual(each) else "beyond the usual")
            + ("" if each.truth is None else f"; in truth {each.truth}"),
        ),
    )


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
