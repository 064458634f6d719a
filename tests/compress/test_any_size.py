"""Resizing and cropping inside the file: the pixels that Pillow gives, on photos where there are some."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from PIL import Image

from compress.data.preprocessing import Preprocessing, ResizeAndCrop, preprocess
from compress.errors import ArtifactError, ModelError
from compress.export.any_size import CROPPED, write_any_size_entry
from compress.export.exported import read_exported, write_exported
from compress.export.float_forms import float16_model
from compress.runtime import load_predictor
from tests.compress.test_float_forms import SIZE, network_file

PHOTOS = Path("../shared/data/imagenet-samples.zip")
HEIGHT, WIDTH = SIZE


def preprocessing(shorter_side: int, interpolation: str) -> Preprocessing:
    resize = ResizeAndCrop.model_validate(
        {"shorter_side": shorter_side, "crop_fraction": HEIGHT / shorter_side, "interpolation": interpolation}
    )
    return Preprocessing(height=HEIGHT, width=WIDTH, resize=resize, alpha_background="white")


def source_file(path: Path, how: Preprocessing | None) -> Path:
    """A network with the entry of exported ones, that says how pictures become its pixels."""
    network_file(path)
    if how is not None:
        model = onnx.load(path)
        model.metadata_props.add(key="preprocessing", value=json.dumps(how.model_dump(mode="json")))
        path.write_bytes(model.SerializeToString())
    return path


def cropping_session(path: Path) -> ort.InferenceSession:
    """The same file, which also gives the pixels behind its added steps."""
    model = onnx.load(path)
    model.graph.output.append(helper.make_tensor_value_info(CROPPED, TensorProto.UINT8, ["batch", *SIZE, 3]))
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def smooth_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise, blurred by enlarging: like a photo, neighbours resemble each other."""
    noise = np.random.default_rng(seed).integers(0, 256, (max(height // 4, 1), max(width // 4, 1), 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(40, 30), (30, 41), (7, 7), (6, 90), (91, 8), (300, 201), (3, 5), (1, 2)])
def test_pixels_are_those_of_pillow(tmp_path: Path, interpolation: str, size: tuple[int, int]) -> None:
    how = preprocessing(7, interpolation)
    write_any_size_entry(source_file(tmp_path / "net.onnx", how), tmp_path / "any.onnx")
    session = cropping_session(tmp_path / "any.onnx")
    picture = smooth_picture(*size)
    logits, pixels = session.run(["logits", CROPPED], {"image": np.asarray(picture)[None]})
    expected = preprocess(picture, how)[None]
    # Both compute in fixed point, with a last bit of their own.
    assert np.abs(pixels.astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(logits, load_predictor(tmp_path / "net.onnx")(pixels))


@pytest.mark.skipif(not PHOTOS.is_file(), reason=f"{PHOTOS} is not there")
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_most_photos_come_out_equal_in_every_pixel(tmp_path: Path, interpolation: str) -> None:
    how = preprocessing(8, interpolation)
    write_any_size_entry(source_file(tmp_path / "net.onnx", how), tmp_path / "any.onnx")
    session = cropping_session(tmp_path / "any.onnx")
    differences: list[int] = []
    with zipfile.ZipFile(PHOTOS) as archive:
        for name in [name for name in archive.namelist() if name.endswith(".jpg")][:20]:
            photo = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            (pixels,) = session.run([CROPPED], {"image": np.asarray(photo)[None]})
            differences.append(int(np.abs(pixels[0].astype(int) - preprocess(photo, how)).max()))
    assert max(differences) <= 2
    assert differences.count(0) >= 15


def test_a_batch_has_one_size_and_any_number_of_pictures(tmp_path: Path) -> None:
    how = preprocessing(7, "bilinear")
    write_any_size_entry(source_file(tmp_path / "net.onnx", how), tmp_path / "any.onnx")
    session = ort.InferenceSession(str(tmp_path / "any.onnx"), providers=["CPUExecutionProvider"])
    pictures = np.stack([np.asarray(smooth_picture(33, 21, seed)) for seed in range(7)])
    (together,) = session.run(["logits"], {"image": pictures})
    alone = [session.run(["logits"], {"image": picture[None]})[0] for picture in pictures]
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_it_says_what_it_takes_and_keeps_the_rest(tmp_path: Path) -> None:
    write_any_size_entry(source_file(tmp_path / "net.onnx", preprocessing(7, "bicubic")), tmp_path / "any.onnx")
    model = onnx.load(tmp_path / "any.onnx")
    texts = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert texts["entry"] == "uint8_nhwc_any_size"
    assert "of any size" in texts["input"]
    assert texts["classes"] == ["a", "b", "c", "d"]
    (image,) = ort.InferenceSession(str(tmp_path / "any.onnx"), providers=["CPUExecutionProvider"]).get_inputs()
    assert (image.type, image.shape) == ("tensor(uint8)", ["batch", "height", "width", 3])
    with pytest.raises(ArtifactError, match="expected uint8 'image'"):
        load_predictor(tmp_path / "any.onnx")


def test_every_precision_has_this_form(tmp_path: Path) -> None:
    source = read_exported(source_file(tmp_path / "net.onnx", preprocessing(7, "bicubic")))
    write_exported(tmp_path / "half.onnx", float16_model(source), made_of=source, metadata={"form": "float16"})
    write_any_size_entry(tmp_path / "half.onnx", tmp_path / "any.onnx")
    picture = np.asarray(smooth_picture(33, 21))[None]
    logits, pixels = cropping_session(tmp_path / "any.onnx").run(["logits", CROPPED], {"image": picture})
    np.testing.assert_array_equal(logits, load_predictor(tmp_path / "half.onnx")(pixels))


def test_a_file_that_resizes_nothing_or_does_not_say_how_is_refused(tmp_path: Path) -> None:
    fixed = Preprocessing(height=HEIGHT, width=WIDTH, resize=None, alpha_background="white")
    with pytest.raises(ModelError, match="resizes none, so there is nothing to put inside"):
        write_any_size_entry(source_file(tmp_path / "fixed.onnx", fixed), tmp_path / "any.onnx")
    with pytest.raises(ArtifactError, match="does not say how pictures are resized"):
        write_any_size_entry(source_file(tmp_path / "silent.onnx", None), tmp_path / "any.onnx")
    other = preprocessing(20, "bicubic").model_copy(update={"height": 20})
    with pytest.raises(ArtifactError, match="takes 6 x 5 px, its metadata prepares 20 x 5"):
        write_any_size_entry(source_file(tmp_path / "other.onnx", other), tmp_path / "any.onnx")
    assert not (tmp_path / "any.onnx").exists()
