"""Every operation equals timm's, Pillow's or torchvision's for the same parameters, pixel for pixel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageOps
from timm.data import auto_augment as timm_auto_augment
from torchvision.transforms import functional

from compress.data import picture_operations as operations
from compress.data.picture_operations import Canvas
from compress.data.preprocessing import RESAMPLING
from compress.data.rand_augment import OPERATIONS, Strength
from tests.compress.data.pictures import noise, smooth

FILL = (124, 116, 104)
TIMM_NAMES = {
    "auto_contrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "saturation": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}
MAGNITUDES = (0.0, 1.3, 4.999, 5.0, 9.0, 9.49, 9.99, 10.0)
PICTURES = {
    "smooth": smooth(3, 40, 31),
    "noise": noise(4, 30, 33),
    "dark": noise(5, 20, 20).point(lambda value: value // 3 + 20),
    "flat": Image.new("RGB", (20, 14), (90, 0, 255)),
    "two colours": Image.fromarray(np.kron(np.eye(8, dtype=np.uint8)[..., None] * [200, 7, 90], np.ones((3, 3, 1)))
                                   .astype(np.uint8)),
    "one pixel": Image.new("RGB", (1, 1), (1, 2, 3)),
}  # fmt: skip


@pytest.fixture(params=PICTURES.values(), ids=list(PICTURES))
def picture(request: pytest.FixtureRequest) -> Image.Image:
    return request.param


def test_operations_are_those_of_timms_increasing_set_in_its_order() -> None:
    assert [TIMM_NAMES[name] for name in OPERATIONS] == timm_auto_augment.rand_augment_choices("", increasing=True)


@pytest.mark.parametrize("interpolation", RESAMPLING)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_equals_timms_at_every_magnitude(
    name: str, sign: float, interpolation: str, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timm_auto_augment, "_randomly_negate", lambda value: sign * value)
    canvas = Canvas(RESAMPLING[interpolation], FILL)
    before = picture.tobytes()
    for magnitude in MAGNITUDES[: -1 if name == "posterize" else None]:
        hparams = {"img_mean": FILL, "interpolation": canvas.resampling}
        reference = timm_auto_augment.AugmentOp(TIMM_NAMES[name], prob=1.0, magnitude=magnitude, hparams=hparams)
        changed = OPERATIONS[name](picture, Strength(magnitude / 10, sign, canvas))
        assert changed.size == picture.size
        assert changed.tobytes() == reference(picture).tobytes(), magnitude
    assert picture.tobytes() == before


def test_posterizing_to_no_bits_is_black() -> None:
    # Where timm asks Pillow for 0 bits at magnitude 10, Pillow 13 raises; older ones gave black.
    strongest = Strength(1.0, 1.0, Canvas(RESAMPLING["bilinear"], FILL))
    assert OPERATIONS["posterize"](PICTURES["noise"], strongest).getextrema() == ((0, 0),) * 3


@pytest.mark.parametrize(
    ("ours", "pillows"),
    [
        (operations.auto_contrast, ImageOps.autocontrast),
        (operations.equalize, ImageOps.equalize),
        (operations.invert, ImageOps.invert),
    ],
)
def test_tables_equal_pillows(
    ours: Callable[[Image.Image], Image.Image], pillows: Callable[[Image.Image], Image.Image], picture: Image.Image
) -> None:
    assert ours(picture).tobytes() == pillows(picture).tobytes()


def test_tables_with_a_parameter_equal_pillows_for_every_value(picture: Image.Image) -> None:
    for num_bits in range(1, 9):
        assert operations.posterize(picture, num_bits).tobytes() == ImageOps.posterize(picture, num_bits).tobytes()
    for threshold in (0, 1, 127, 128, 255, 256):
        assert operations.solarize(picture, threshold).tobytes() == ImageOps.solarize(picture, threshold).tobytes()


def test_hue_equals_torchvisions_for_every_turn(picture: Image.Image) -> None:
    for turn in np.linspace(-0.5, 0.5, 41).tolist():
        assert operations.hue(picture, turn).tobytes() == functional.adjust_hue(picture, turn).tobytes()
