"""Commands predict and compare: exported files on pictures of any size."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from compress.comparison import Comparison, as_json, write_differences
from compress.comparison import compare as compare_files
from compress.errors import DataError
from compress.files import write_json
from compress.predictions import Prediction, find_pictures, open_output, predict_pictures, preprocessing_of
from compress.runtime import OnnxPredictor, load_predictor
from compress.verify import MODEL, verify_deploy

MAX_LISTED = 10


def run(model: Path, images: Sequence[Path], *, output: Path | None, top_k: int, threads: int) -> None:
    """Print or write the predictions.

    Raises:
        DataError: no picture could be used, or nothing is at a path.
        ArtifactError: the model cannot be used, or the output cannot be written.
    """
    predictor = _load(model, threads)
    preprocessing = preprocessing_of(model, predictor)
    num_right = num_wrong = 0
    with find_pictures(images) as pictures, nullcontext() if output is None else open_output(output) as writer:
        for prediction in _told(predict_pictures(predictor, preprocessing, pictures, top_k=top_k)):
            num_right += prediction.problem is None
            num_wrong += prediction.problem is not None
            if writer is not None:
                writer.write(prediction)
            elif prediction.problem is None:
                scores = "  ".join(f"{label} {score:.3f}" for label, score in prediction.scores)
                print(f"{prediction.image}: {scores}")
    if num_right == 0:
        raise DataError(f"none of {num_wrong} pictures could be used; the reasons stand above")
    skipped = f", {num_wrong} skipped" if num_wrong else ""
    print(
        f"{num_right} pictures answered{skipped}{'' if output is None else f'; written to {output}'}", file=sys.stderr
    )


def compare(
    first: Path, second: Path, images: Sequence[Path], *, sheet: Path, output: Path | None, threads: int
) -> None:
    """Print where two files disagree, and draw the pictures.

    Raises:
        DataError: no picture could be used, or the files have other classes.
        ArtifactError: a model cannot be used, or an output cannot be written.
    """
    names = (str(first), str(second))
    predictors = _load(first, threads), _load(second, threads)
    with find_pictures(images) as pictures:
        found = compare_files(*predictors, pictures, names=names)
        list(_told(found.problems))
        write_differences(sheet, found, names=names)
    if output is not None:
        write_json(output, {"a": names[0], "b": names[1], **as_json(found)})
    for line in _lines(found):
        print(line)
    print(f"pictures that differ: {sheet}" + ("" if output is None else f"; all numbers: {output}"))


def _load(model: Path, threads: int) -> OnnxPredictor:
    """A file, or the one in a deploy folder, which is verified first."""
    if not model.is_dir():
        return load_predictor(model, threads=threads)
    verify_deploy(model)
    return load_predictor(model / MODEL, threads=threads)


def _told(predictions: Iterable[Prediction]) -> Iterator[Prediction]:
    """The same predictions; those of unusable pictures are named on standard error."""
    for prediction in predictions:
        if prediction.problem is not None:
            print(f"skipped {prediction.image}: {prediction.problem}", file=sys.stderr)
        yield prediction


def _lines(found: Comparison) -> Iterator[str]:
    relative = found.max_abs / found.largest_logit if found.largest_logit else 0.0
    yield f"pictures           {found.num_images}" + (f", {len(found.problems)} skipped" if found.problems else "")
    yield f"agreement          {found.agreement:.2%}"
    yield (
        f"logits differ by   {found.max_abs:.3g} at most ({relative:.2g} of the largest), {found.typical_abs:.3g} in "
        "the median picture"
    )
    if found.accuracies is not None:
        first, second = found.accuracies
        yield f"accuracy           a {first:.2%}, b {second:.2%} on {found.num_labelled} pictures in class folders"
    if found.disagreements:
        yield (
            f"disagreements      {len(found.disagreements)}, of them {found.num_usual} where a was less sure than the "
            "two usually differ; the surest first:"
        )
    for each in found.disagreements[:MAX_LISTED]:
        truth = "" if each.truth is None else f", in truth {each.truth}"
        usual = "" if found.is_usual(each) else ", beyond the usual difference"
        yield (
            f"  {each.picture.name}: a {each.first.label} (by {each.first_margin:.2g}), "
            f"b {each.second.label} (by {each.second_margin:.2g}){truth}{usual}"
        )
    if len(found.disagreements) > MAX_LISTED:
        yield f"  and {len(found.disagreements) - MAX_LISTED} more"
