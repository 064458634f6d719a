"""Evaluation preprocessing is torchvision's, pixel for pixel, and described in plain JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from compress.data.decoding import UnreadableImageError
from compress.data.preprocessing import Interpolation, Preprocessing, preprocess, resize_and_crop
from tests.compress.data.pictures import noise

SIZES = [(64, 64), (65, 48), (47, 90), (300, 201), (33, 32), (20, 31), (500, 60)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_fraction", [1.0, 0.875, 0.7])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_equals_torchvision(width: int, height: int, crop_fraction: float, interpolation: Interpolation) -> None:
    picture = noise(width, width, height)
    rule = resize_and_crop(32, crop_fraction=crop_fraction, interpolation=interpolation, alpha_background="white")
    reference = Compose([Resize(round(32 / crop_fraction), InterpolationMode(interpolation)), CenterCrop(32)])
    assert np.array_equal(preprocess(picture, rule), np.asarray(reference(picture)))


def test_usual_photo_crop_is_224_of_256() -> None:
    rule = resize_and_crop(224, crop_fraction=0.875, interpolation="bilinear", alpha_background="white")
    assert rule.resize is not None
    assert (rule.resize.shorter_side, rule.height, rule.width) == (256, 224, 224)


def test_native_picture_passes_unchanged() -> None:
    native = Preprocessing(height=12, width=10, resize=None, alpha_background="white")
    picture = noise(1, 10, 12)
    assert np.array_equal(preprocess(picture, native), np.asarray(picture))


def test_native_picture_of_another_size_is_refused() -> None:
    native = Preprocessing(height=12, width=10, resize=None, alpha_background="white")
    with pytest.raises(UnreadableImageError, match="12 x 10 px, expected 10 x 12"):
        preprocess(noise(1, 12, 10), native)


def test_strip_that_would_explode_when_resized_is_refused() -> None:
    rule = resize_and_crop(224, crop_fraction=0.875, interpolation="bilinear", alpha_background="white")
    with pytest.raises(UnreadableImageError, match="too elongated: resized they would be 5120000 x 256 px"):
        preprocess(noise(1, 20_000, 1), rule)


def test_description_survives_json() -> None:
    rule = resize_and_crop(224, crop_fraction=0.875, interpolation="bicubic", alpha_background="black")
    text = json.dumps(rule.model_dump(mode="json"), allow_nan=False)
    assert Preprocessing.model_validate_json(text) == rule
