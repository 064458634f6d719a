"""Two files on the same pictures: how far apart, where they disagree, how sure they were, who was right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from compress.comparison import Comparison, as_json, compare, write_differences
from compress.data.preprocessing import resize_and_crop
from compress.errors import DataError
from compress.predictions import find_pictures
from compress.quantize import Int8Static
from compress.runtime import OnnxPredictor, load_predictor
from tests.compress.deployed_student import SIZE as PHOTO_SIZE
from tests.compress.deployed_student import export_student
from tests.compress.onnx_files import CLASSES, SIZE, colour_model, random_images
from tests.compress.pictures import write_class_folders, write_picture

NATIVE = {"height": SIZE[0], "width": SIZE[1], "resize": None, "alpha_background": "white"}


def write_model(
    path: Path,
    *,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    classes: tuple[str, ...] = CLASSES,
    preprocessing: object = NATIVE,
) -> OnnxPredictor:
    """Mean colours times a weight for each."""
    model = colour_model()
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.array(weights, dtype=np.float32), "weight"))
    told = {"classes": classes, "preprocessing": preprocessing}
    helper.set_model_props(model, {key: json.dumps(value) for key, value in told.items()})
    path.write_bytes(model.SerializeToString())
    return load_predictor(path)


def compared(first: OnnxPredictor, second: OnnxPredictor, folder: Path) -> Comparison:
    with find_pictures([folder]) as pictures:
        return compare(first, second, pictures)


def test_file_agrees_with_itself(tmp_path: Path) -> None:
    model = write_model(tmp_path / "a.onnx")
    found = compared(model, model, write_class_folders(tmp_path / "pictures"))
    assert (found.num_images, found.agreement, found.max_abs, found.typical_abs) == (6, 1.0, 0.0, 0.0)
    assert found.accuracies == (1.0, 1.0)
    assert found.disagreements == ()


def test_numbers_are_those_of_the_logits(tmp_path: Path) -> None:
    first, second = write_model(tmp_path / "a.onnx"), write_model(tmp_path / "b.onnx", weights=(1.0, 1.5, 1.0))
    folder = write_class_folders(tmp_path / "pictures")
    pixels = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))])
    ours, theirs = first(pixels), second(pixels)
    found = compared(first, second, folder)
    differences = np.abs(ours - theirs).max(axis=1)
    assert found.max_abs == pytest.approx(differences.max())
    assert found.typical_abs == pytest.approx(np.median(differences))
    assert found.largest_logit == pytest.approx(np.abs(ours).max())


def uneven(folder: Path) -> Path:
    """A clear red picture, and one that is nearly as green as red, in the folder of reds."""
    write_picture(folder / "red" / "clear.png", "red")
    pixels = np.zeros((SIZE[0], SIZE[1], 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = 100, 99
    Image.fromarray(pixels).save(folder / "red" / "close.png")
    return folder


def test_disagreement_comes_with_both_margins(tmp_path: Path) -> None:
    first, second = write_model(tmp_path / "a.onnx"), write_model(tmp_path / "b.onnx", weights=(1.0, 1.1, 1.0))
    found = compared(first, second, uneven(tmp_path / "pictures"))
    (each,) = found.disagreements
    assert each.picture.name.endswith("red/close.png")
    assert (each.first.label, each.second.label, each.truth) == ("red", "green", "red")
    assert each.first_margin == pytest.approx(1.0)
    assert each.second_margin == pytest.approx(8.9)
    assert each.max_abs == pytest.approx(9.9)
    assert found.agreement == 0.5
    assert found.accuracies == (1.0, 0.5)


def test_disagreement_within_the_usual_difference_is_told_from_one_beyond_it(tmp_path: Path) -> None:
    first = write_model(tmp_path / "a.onnx")
    folder = uneven(tmp_path / "pictures")
    for name in ("dark1", "dark2", "dark3"):  # hardly any green, so that the usual difference is small
        write_picture(folder / "red" / f"{name}.png", "red", level=0)
    close = compared(first, write_model(tmp_path / "b.onnx", weights=(1.0, 1.1, 1.0)), folder)
    assert [close.is_usual(each) for each in close.disagreements if "close" in each.picture.name] == [True]
    far = compared(first, write_model(tmp_path / "c.onnx", weights=(0.1, 1.0, 0.1)), uneven(tmp_path / "others"))
    assert far.num_usual <= len(far.disagreements)


def test_surest_disagreement_comes_first(tmp_path: Path) -> None:
    first, second = write_model(tmp_path / "a.onnx"), write_model(tmp_path / "b.onnx", weights=(0.2, 1.0, 1.0))
    folder = tmp_path / "pictures"
    for number, level in enumerate((120, 0, 60)):
        pixels = np.full((SIZE[0], SIZE[1], 3), 100, dtype=np.uint8)
        pixels[..., 0] += np.uint8(level)
        pixels[..., 2] = 0
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    found = compared(first, second, folder)
    weights = [each.weight for each in found.disagreements]
    assert weights == sorted(weights, reverse=True)
    assert found.accuracies is None


def test_classes_in_another_order_are_compared_by_name(tmp_path: Path) -> None:
    first = write_model(tmp_path / "a.onnx")
    model = colour_model(classes=("blue", "green", "red"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0], dtype=np.int64), "order"))
    model.graph.node[-1].output[0] = "unordered"
    model.graph.node.append(helper.make_node("Gather", ["unordered", "order"], ["logits"], axis=1))
    told = {"classes": ("blue", "green", "red"), "preprocessing": NATIVE}
    helper.set_model_props(model, {key: json.dumps(value) for key, value in told.items()})
    onnx.save(model, tmp_path / "b.onnx")
    found = compared(first, load_predictor(tmp_path / "b.onnx"), write_class_folders(tmp_path / "pictures"))
    assert (found.agreement, found.max_abs) == (1.0, 0.0)


def test_files_of_other_classes_are_refused(tmp_path: Path) -> None:
    first, second = write_model(tmp_path / "a.onnx"), write_model(tmp_path / "b.onnx", classes=("red", "green", "grey"))
    with pytest.raises(DataError, match="have other classes"):
        compared(first, second, write_class_folders(tmp_path / "pictures"))


def test_each_file_gets_the_pictures_its_own_way(tmp_path: Path) -> None:
    """One file takes native pictures, the other resized ones: a picture that only one can take is a problem."""
    first = load_predictor(export_student(tmp_path / "a.onnx"))
    resized = resize_and_crop(PHOTO_SIZE, crop_fraction=1.0, interpolation="bilinear", alpha_background="black")
    model = onnx.load(tmp_path / "a.onnx")
    for entry in model.metadata_props:
        if entry.key == "preprocessing":
            entry.value = json.dumps(resized.model_dump(mode="json"))
    onnx.save(model, tmp_path / "b.onnx")
    write_picture(tmp_path / "pictures" / "a.png", "red", (70, 50))
    found = compared(first, load_predictor(tmp_path / "b.onnx"), tmp_path / "pictures")
    assert found.num_images == 1
    assert found.max_abs > 0, "the same network saw another part of the picture"


def test_int8_form_is_compared_with_its_float32_file(tmp_path: Path) -> None:
    first = load_predictor(export_student(tmp_path / "float32.onnx"))
    calibration = [random_images(16, (PHOTO_SIZE, PHOTO_SIZE))]
    Int8Static()(tmp_path / "float32.onnx", tmp_path / "int8.onnx", calibration=calibration)
    for number, colour in enumerate(("red", "green", "blue")):
        write_picture(tmp_path / "pictures" / f"{number}.png", colour, (60, 40))
    found = compared(first, load_predictor(tmp_path / "int8.onnx"), tmp_path / "pictures")
    assert found.num_images == 3
    assert 0 < found.max_abs < found.largest_logit


def test_unusable_pictures_are_listed_and_without_any_other_it_is_an_error(tmp_path: Path) -> None:
    model = write_model(tmp_path / "a.onnx")
    folder = uneven(tmp_path / "pictures")
    (folder / "red" / "text.png").write_text("no picture")
    assert [Path(each.image).name for each in compared(model, model, folder).problems] == ["text.png"]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "text.png").write_text("no picture")
    with pytest.raises(DataError, match=r"no picture could be used; the first: .*text\.png"):
        compared(model, model, tmp_path / "bad")


def test_file_of_all_numbers_is_plain_json(tmp_path: Path) -> None:
    first, second = write_model(tmp_path / "a.onnx"), write_model(tmp_path / "b.onnx", weights=(1.0, 1.1, 1.0))
    value = json.loads(json.dumps(as_json(compared(first, second, uneven(tmp_path / "pictures"))), allow_nan=False))
    assert value["disagreements"][0]["a"]["label"] == "red"
    assert (value["accuracy_a"], value["accuracy_b"]) == (1.0, 0.5)


def test_sheet_shows_a_cell_for_each_disagreement(tmp_path: Path) -> None:
    first, second = write_model(tmp_path / "a.onnx"), write_model(tmp_path / "b.onnx", weights=(1.0, 1.1, 1.0))
    found = compared(first, second, uneven(tmp_path / "pictures"))
    write_differences(tmp_path / "sheet.png", found, names=("a", "b"))
    with Image.open(tmp_path / "sheet.png") as sheet:
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(maxcolors=1 << 20) or ()}
    assert (100, 99, 0) in colours, "the picture stands there pixel for pixel"
