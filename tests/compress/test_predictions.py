"""Pictures of any size and number become answers in order; what cannot be used is named, never guessed."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from PIL import Image

from compress.data.preprocessing import preprocess, resize_and_crop
from compress.errors import ArtifactError, DataError
from compress.predictions import (
    Picture,
    Prediction,
    Score,
    best_classes,
    find_pictures,
    open_output,
    predict_pictures,
    preprocessing_of,
)
from compress.runtime import OnnxPredictor, load_predictor
from tests.compress.deployed_student import PREPROCESSING as PHOTO_PREPROCESSING
from tests.compress.deployed_student import export_student
from tests.compress.onnx_files import CLASSES, SIZE, colour_model
from tests.compress.pictures import write_class_folders, write_picture

NATIVE = {"height": SIZE[0], "width": SIZE[1], "resize": None, "alpha_background": "white"}


def write_model(path: Path, *, preprocessing: object = NATIVE, weight: float = 0.05) -> Path:
    model = colour_model(weight=weight)
    told = {"classes": CLASSES, "preprocessing": preprocessing}
    helper.set_model_props(model, {key: json.dumps(value) for key, value in told.items()})
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def predictor(tmp_path: Path) -> OnnxPredictor:
    return load_predictor(write_model(tmp_path / "model.onnx"))


def predict(predictor: OnnxPredictor, paths: Sequence[Path], *, top_k: int = 1) -> list[Prediction]:
    with find_pictures(paths) as pictures:
        return list(predict_pictures(predictor, preprocessing_of("model", predictor), pictures, top_k=top_k))


def test_folder_is_answered_in_order_and_its_other_files_are_left_out(predictor: OnnxPredictor, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "pictures")
    found = predict(predictor, [tmp_path / "pictures"])
    assert [Path(each.image).relative_to(tmp_path / "pictures").as_posix() for each in found] == [
        "blue/0.png", "blue/1.png", "green/0.png", "green/1.png", "red/0.png", "red/1.png",
    ]  # fmt: skip
    assert [each.scores[0].label for each in found] == ["blue"] * 2 + ["green"] * 2 + ["red"] * 2


def test_archive_is_answered_like_the_folder_in_it(predictor: OnnxPredictor, tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "pictures")
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder).as_posix())
    # A second path follows: the archive's last pictures are still being read when it is looked at.
    of_archive = predict(predictor, [tmp_path / "pictures.zip", folder])
    assert [each.scores for each in of_archive[:6]] == [each.scores for each in of_archive[6:]]
    assert all(each.problem is None for each in of_archive)


def test_picture_of_any_size_goes_the_way_in_the_metadata(tmp_path: Path) -> None:
    predictor = load_predictor(export_student(tmp_path / "model.onnx"))
    path = write_picture(tmp_path / "photo.png", "red", (90, 61))
    (answer,) = predict(predictor, [path], top_k=4)
    pixels = preprocess(Image.open(path), PHOTO_PREPROCESSING)
    assert answer.scores == best_classes(predictor(pixels[None])[0], predictor.classes, 4)


def test_scores_are_the_softmax_and_the_best_come_first() -> None:
    logits = np.array([0.0, np.log(3), 0.0, np.log(5)], dtype=np.float32)
    scores = best_classes(logits, ("a", "b", "c", "d"), 3)
    assert [score.label for score in scores] == ["d", "b", "a"]
    assert [score.score for score in scores] == pytest.approx([0.5, 0.3, 0.1])


def test_large_logits_do_not_overflow() -> None:
    assert best_classes(np.array([1e30, -1e30], dtype=np.float32), ("a", "b"), 1) == (Score("a", 1.0),)


def test_unusable_pictures_are_named_and_the_others_answered(predictor: OnnxPredictor, tmp_path: Path) -> None:
    good = write_picture(tmp_path / "good.png", "red")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:60])
    write_picture(tmp_path / "large.png", "red", (60, 40))
    names = ["text.png", "good.png", "cut.png", "large.png"]
    answers = predict(predictor, [tmp_path / name for name in names])
    assert [Path(each.image).name for each in answers] == names
    assert [each.problem is None for each in answers] == [False, True, False, False]
    assert "60 x 40 px, expected 6 x 4" in str(answers[3].problem)
    assert all(each.scores == () for each in answers if each.problem)


def test_answer_that_is_no_number_is_a_problem(tmp_path: Path) -> None:
    predictor = load_predictor(write_model(tmp_path / "model.onnx", weight=float("nan")))
    (answer,) = predict(predictor, [write_picture(tmp_path / "a.png", "red")])
    assert answer.problem == "the model's answer holds NaN or infinity"


def test_any_number_of_pictures_is_read_one_after_the_other(predictor: OnnxPredictor, tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", "blue")
    asked: list[int] = []

    def endless() -> Iterator[Picture]:
        for number in range(10**9):
            asked.append(number)
            yield Picture(str(number), None, str(path))

    answers = predict_pictures(predictor, preprocessing_of("model", predictor), endless())
    assert [each.image for each in islice(answers, 5)] == ["0", "1", "2", "3", "4"]
    assert len(asked) < 100
    answers.close()  # type: ignore[attr-defined]


def test_nothing_at_a_path_is_an_error_before_any_work(predictor: OnnxPredictor, tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", "red")
    with (
        pytest.raises(DataError, match=r"nothing is at .*none\.png"),
        find_pictures([path, tmp_path / "none.png"]) as pictures,
    ):
        next(pictures)


def test_folder_without_pictures_is_an_error(predictor: OnnxPredictor, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures in"):
        predict(predictor, [tmp_path / "empty"])


@pytest.mark.parametrize("top_k", [0, 4])
def test_more_classes_than_there_are_is_an_error(predictor: OnnxPredictor, tmp_path: Path, top_k: int) -> None:
    with pytest.raises(DataError, match=f"top_k is {top_k}; this model has 3 classes"):
        predict(predictor, [write_picture(tmp_path / "a.png", "red")], top_k=top_k)


@pytest.mark.parametrize(
    ("preprocessing", "told"),
    [
        (None, "does not say how pictures become images"),
        ({**NATIVE, "resize": "somehow"}, r"preprocessing\.resize"),
        (
            resize_and_crop(4, crop_fraction=1.0, interpolation="bilinear", alpha_background="white").model_dump(
                mode="json"
            ),
            r"takes \(4, 6\) and its metadata says how to make \(4, 4\)",
        ),
    ],
)
def test_file_that_does_not_say_how_is_refused(tmp_path: Path, preprocessing: object, told: str) -> None:
    predictor = load_predictor(write_model(tmp_path / "model.onnx", preprocessing=preprocessing))
    with pytest.raises(ArtifactError, match=told):
        preprocessing_of(tmp_path / "model.onnx", predictor)


def test_answering_needs_no_torch() -> None:
    program = "import compress.predictions, compress.comparison, sys; assert not {'torch', 'onnx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


ANSWERS = (
    Prediction("a,b.png", (Score("red", 0.75), Score("grün", 0.125))),
    Prediction("bad.png", (), 'cut "off"'),
)


def written(path: Path, predictions: Sequence[Prediction] = ANSWERS) -> str:
    with open_output(path) as output:
        for prediction in predictions:
            output.write(prediction)
    assert list(path.parent.glob(".*")) == []
    return path.read_text(encoding="utf-8")


def test_csv_has_a_row_for_each_rank_and_reads_back(tmp_path: Path) -> None:
    assert list(csv.DictReader(written(tmp_path / "out.csv").splitlines())) == [
        {"image": "a,b.png", "rank": "1", "label": "red", "score": "0.75", "problem": ""},
        {"image": "a,b.png", "rank": "2", "label": "grün", "score": "0.125", "problem": ""},
        {"image": "bad.png", "rank": "", "label": "", "score": "", "problem": 'cut "off"'},
    ]


EXPECTED_JSON = [
    {"image": "a,b.png", "predictions": [{"label": "red", "score": 0.75}, {"label": "grün", "score": 0.125}]},
    {"image": "bad.png", "problem": 'cut "off"'},
]


def test_json_and_json_lines_hold_the_same(tmp_path: Path) -> None:
    assert json.loads(written(tmp_path / "out.json")) == EXPECTED_JSON
    assert [json.loads(line) for line in written(tmp_path / "out.jsonl").splitlines()] == EXPECTED_JSON
    assert json.loads(written(tmp_path / "none.json", ())) == []


def test_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("earlier")

    def write_a_part() -> None:
        with open_output(tmp_path / "out.csv") as output:
            output.write(ANSWERS[0])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_a_part()
    assert (tmp_path / "out.csv").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_output_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, told in (("out.xlsx", r"ends in \.csv, \.json, \.jsonl"), ("file/out.csv", "choose a writable place")):
        with pytest.raises(ArtifactError, match=told), open_output(tmp_path / path):
            pass
