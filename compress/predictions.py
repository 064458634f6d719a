"""What an exported file answers to pictures, one after the other, however many there are.

Every picture goes the way that validation images went, by the rule in the file's metadata. Each is answered by itself:
its answer never depends on its neighbours, and on a processor a batch of 32 takes about as long as 32 of one.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TextIO, final

import numpy as np
from jaxtyping import Float32

from compress.data.decoding import DEFAULT_MAX_PIXELS, Pixels, UnreadableImageError, decode, image_extensions
from compress.data.file_tree import FileTree, open_file_tree
from compress.data.preprocessing import Preprocessing, preprocess, preprocessing_in
from compress.data.threads import map_in_threads
from compress.errors import ArtifactError, DataError
from compress.runtime import OnnxPredictor

OUTPUT_FORMATS = (".csv", ".json", ".jsonl")
CURE = "export it again"


class Picture(NamedTuple):
    """A picture that is not read yet."""

    name: str
    """Its path, as a person would write it."""
    tree: FileTree | None
    """The folder or archive that it lies in; None for a file of its own."""
    file: str
    """Where it is to be found: in the tree, or on disk."""

    def read(self) -> bytes:
        """Its bytes.

        Raises:
            UnreadableImageError: it cannot be read.
        """
        if self.tree is not None:
            return self.tree.read(self.file)
        try:
            return Path(self.file).read_bytes()
        except OSError as error:
            raise UnreadableImageError(f"can not be read: {error.strerror}") from error


class Score(NamedTuple):
    """One class of an answer."""

    label: str
    score: float
    """Softmax of the logits, in [0, 1]."""


@final
@dataclass(frozen=True)
class Prediction:
    """The answer to one picture, or why there is none."""

    image: str
    scores: tuple[Score, ...]
    """The likeliest classes, best first; empty where the picture could not be used."""
    problem: str | None = None


def preprocessing_of(name: object, predictor: OnnxPredictor) -> Preprocessing:
    """How a picture becomes this file's input, as its metadata says; `name` is for messages.

    Raises:
        ArtifactError: it does not say, or says it for images of another size.
    """
    found = preprocessing_in(predictor.metadata, name)
    if (found.height, found.width) != predictor.image_size:
        raise ArtifactError(
            f"{name} takes {predictor.image_size} and its metadata says how to make {(found.height, found.width)} "
            f"(height and width); {CURE}"
        )
    return found


@contextmanager
def find_pictures(paths: Sequence[Path]) -> Generator[Iterator[Picture]]:
    """Pictures at these paths, in order: files as they are named, and all below folders and in zip archives.

    In a folder or archive only files with an image's ending count, and hidden ones do not; they are listed before the
    first is read, and read one at a time. Archives stay open until the context ends.

    Raises:
        DataError: nothing is at a path, or a folder holds no picture.
    """
    for path in paths:
        if not path.exists():
            raise DataError(f"nothing is at {path} (looked from {Path.cwd()}); correct the path")
    with ExitStack() as open_trees:
        yield chain.from_iterable(_pictures_at(path, open_trees) for path in paths)


def _pictures_at(path: Path, open_trees: ExitStack) -> Iterator[Picture]:
    shown = str(path).encode("utf-8", "backslashreplace").decode()  # a name may hold bytes that are no text
    if not path.is_dir() and path.suffix.lower() != ".zip":
        yield Picture(shown, None, str(path))
        return
    tree = open_trees.enter_context(open_file_tree(path))
    endings = image_extensions()
    names = [name for name in tree.files if PurePosixPath(name).suffix.lower() in endings]
    if not names:
        raise DataError(f"no pictures in {shown}: none of {len(tree.files)} files has an ending such as .png or .jpg")
    for name in names:
        yield Picture(f"{shown}/{name}", tree, name)


def load_pixels(picture: Picture, preprocessing: Preprocessing) -> Pixels | UnreadableImageError:
    """The picture as a file's input, or why there is none."""
    try:
        image = decode(picture.read(), max_pixels=DEFAULT_MAX_PIXELS, alpha_background=preprocessing.alpha_background)
        return preprocess(image, preprocessing)
    except UnreadableImageError as error:
        return error


def predict_pictures(
    predictor: OnnxPredictor, preprocessing: Preprocessing, pictures: Iterable[Picture], *, top_k: int = 1
) -> Iterator[Prediction]:
    """Answers in the order of the pictures; a few are decoded ahead, in threads.

    A picture that cannot be used, or whose answer is not finite, is a prediction with a problem.
    """
    if not 1 <= top_k <= len(predictor.classes):
        raise DataError(f"top_k is {top_k}; this model has {len(predictor.classes)} classes")
    return _predictions(predictor, preprocessing, pictures, top_k)


def _predictions(
    predictor: OnnxPredictor, preprocessing: Preprocessing, pictures: Iterable[Picture], top_k: int
) -> Iterator[Prediction]:
    load = partial(_named_pixels, preprocessing=preprocessing)
    for name, pixels in map_in_threads(load, pictures):
        if isinstance(pixels, UnreadableImageError):
            yield Prediction(name, (), str(pixels))
            continue
        logits = predictor(pixels[None])[0]
        if np.isfinite(logits).all():
            yield Prediction(name, best_classes(logits, predictor.classes, top_k))
        else:
            yield Prediction(name, (), "the model's answer holds NaN or infinity")


def _named_pixels(picture: Picture, *, preprocessing: Preprocessing) -> tuple[str, Pixels | UnreadableImageError]:
    return picture.name, load_pixels(picture, preprocessing)


def best_classes(logits: Float32[np.ndarray, " C"], classes: tuple[str, ...], top_k: int) -> tuple[Score, ...]:
    """The `top_k` likeliest classes; equal ones in the order of the classes."""
    powers = np.exp(logits.astype(np.float64) - float(logits.max()))
    scores = powers / powers.sum()
    order = np.argsort(-logits, kind="stable")[:top_k]
    return tuple(Score(classes[place], float(scores[place])) for place in order)


@contextmanager
def open_output(path: Path) -> Generator[PredictionWriter]:
    """A file that grows with the predictions and has its name only when it is whole.

    Raises:
        ArtifactError: its name ends in none of .csv, .json and .jsonl, or it cannot be written.
    """
    if path.suffix not in OUTPUT_FORMATS:
        raise ArtifactError(f"{path}: write predictions to a name that ends in {', '.join(OUTPUT_FORMATS)}")
    partial_path = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial_path.open("w", encoding="utf-8", newline="") as file:
            writer = PredictionWriter(file, path.suffix)
            yield writer
            writer.finish()
        partial_path.replace(path)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror}; choose a writable place") from error
    finally:
        with suppress(OSError):  # what went wrong before is what to tell
            partial_path.unlink(missing_ok=True)


@final
class PredictionWriter:
    """CSV with one row for each picture and rank; JSON as an array of pictures; JSON lines, a picture a line."""

    def __init__(self, file: TextIO, suffix: str) -> None:
        self._file = file
        self._suffix = suffix
        self._num_written = 0
        self._table = csv.writer(file, lineterminator="\n")
        if suffix == ".csv":
            self._table.writerow(("image", "rank", "label", "score", "problem"))

    def write(self, prediction: Prediction) -> None:
        """Append one; unusable pictures stand in the file too, with their problem."""
        if self._suffix == ".csv":
            self._table.writerows(_rows(prediction))
        else:
            if self._suffix == ".json":
                self._file.write(",\n" if self._num_written else "[\n")
            self._file.write(_as_json(prediction) + ("\n" if self._suffix == ".jsonl" else ""))
        self._num_written += 1

    def finish(self) -> None:
        """Write what belongs at the end."""
        if self._suffix == ".json":
            self._file.write("\n]\n" if self._num_written else "[]\n")


def _rows(prediction: Prediction) -> list[tuple[object, ...]]:
    if prediction.problem is not None:
        return [(prediction.image, "", "", "", prediction.problem)]
    return [
        (prediction.image, rank, label, f"{score:.6g}", "")
        for rank, (label, score) in enumerate(prediction.scores, start=1)
    ]


def _as_json(prediction: Prediction) -> str:
    value: dict[str, object] = {"image": prediction.image}
    if prediction.problem is None:
        value["predictions"] = [score._asdict() for score in prediction.scores]
    else:
        value["problem"] = prediction.problem
    return json.dumps(value, ensure_ascii=False)
