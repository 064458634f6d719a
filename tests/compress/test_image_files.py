"""From image files to logits: our way and torchvision's, on real photos and through the exporter."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress.data import DataSettings
from compress.data.prepare import prepare
from compress.data.prepared import load_prepared
from compress.data.preprocessing import preprocess
from compress.errors import ParityError
from compress.image_files import ShippedPath, TorchvisionPath, as_png, stored_files
from compress.parity import assert_parity
from compress.runtime import load_predictor
from compress.torch_predictor import TorchPredictor
from tests.compress.deployed_student import PREPROCESSING, SIZE, export_student, network

PHOTOS = Path("../shared/data/imagenet-samples.zip")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_student(tmp_path_factory.mktemp("student") / "model.onnx")


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def as_jpeg(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format="JPEG", **options)
    return file.getvalue()


def turned_jpeg() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return as_jpeg(picture(90, 50, seed=5), exif=exif)


FILES = [
    as_png(np.asarray(picture(60, 41))),
    as_jpeg(picture(130, 77, seed=1)),
    as_jpeg(picture(35, 90, seed=2).convert("L")),
    as_jpeg(picture(64, 64, seed=3).convert("CMYK")),
    turned_jpeg(),
]


def test_both_ways_give_the_same_logits_from_png_jpeg_grey_cmyk_and_turned_files(student: Path) -> None:
    ours = ShippedPath(load_predictor(student), PREPROCESSING)
    parity = assert_parity(TorchvisionPath(network(), PREPROCESSING), ours, FILES, tolerance=1e-5)
    assert (parity.agreement, parity.batch_sizes) == (1.0, (1, 2, 5))


@pytest.mark.skipif(not PHOTOS.is_file(), reason=f"{PHOTOS} is not there")
def test_both_ways_give_the_same_logits_from_photos(student: Path) -> None:
    with zipfile.ZipFile(PHOTOS) as archive:
        files = [archive.read(name) for name in archive.namelist() if name.endswith(".jpg")][:40]
    ours = ShippedPath(load_predictor(student), PREPROCESSING)
    parity = assert_parity(TorchvisionPath(network(), PREPROCESSING), ours, files, tolerance=1e-5)
    assert parity.agreement_outside_ties == 1.0


@pytest.mark.parametrize("change", [{"interpolation": "bilinear"}, {"shorter_side": 31}])
def test_another_way_of_resizing_is_found_out(student: Path, change: dict[str, object]) -> None:
    """What holds the two tests above to their claim."""
    assert PREPROCESSING.resize is not None
    other = PREPROCESSING.model_copy(update={"resize": PREPROCESSING.resize.model_copy(update=change)})
    with pytest.raises(ParityError, match="disagree"):
        assert_parity(
            TorchvisionPath(network(), PREPROCESSING),
            ShippedPath(load_predictor(student), other),
            FILES,
            tolerance=1e-4,
        )


def test_stored_files_are_the_photos_own_bytes_and_mean_the_stored_pixels(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    contents: set[bytes] = set()
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for seed in range(10):
            content = as_jpeg(picture(60, 45, seed=100 * len(contents) + seed))
            contents.add(content)
            (folder / name / f"{seed}.jpg").write_bytes(content)
        glass = picture(60, 45, seed=7 + len(contents)).convert("RGBA")
        glass.putalpha(picture(60, 45, seed=8 + len(contents)).convert("L"))
        glass.save(folder / name / "glass.png")
    settings = {
        "source": {"name": "image_folder", "path": str(folder)},
        "image_size": SIZE,
        "storage": "encoded",
        "validation_fraction": 0.1,
        "test_fraction": 0.1,
    }
    prepare(DataSettings.model_validate(settings), tmp_path / "prepared")
    data = load_prepared(tmp_path / "prepared")
    chosen = np.arange(len(data.split("train")), dtype=np.int64)[::-1]
    files = stored_files(data, "train", chosen)
    assert len(set(files) & contents) >= len(files) - 2, "all but the transparent ones"
    pixels = data.split("train").images(chosen).numpy()
    shipped = ShippedPath(TorchPredictor(network(), torch.device("cpu")), data.manifest.preprocessing)
    np.testing.assert_array_equal(shipped(files), TorchPredictor(network(), torch.device("cpu"))(pixels))
    way = data.manifest.preprocessing
    assert_parity(TorchvisionPath(network(), way), shipped, files, tolerance=1e-5)


def test_stored_pixels_become_files_without_loss() -> None:
    pixels = np.asarray(picture(SIZE, SIZE))
    with Image.open(io.BytesIO(as_png(pixels))) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)
    assert preprocess(Image.fromarray(pixels), PREPROCESSING.model_copy(update={"resize": None})).shape == (24, 24, 3)
