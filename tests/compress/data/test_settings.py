"""Data settings: what has no effect or no meaning is an error."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from compress.data import DataSettings, Digits, Resize
from compress.data.decoding import LARGEST_MAX_PIXELS


def test_digits_need_nothing_but_their_name() -> None:
    assert DataSettings.model_validate({"source": {"name": "digits"}}) == DataSettings(source=Digits())


def test_settings_survive_json() -> None:
    settings = DataSettings(source=Digits(), image_size=16, resize=Resize(interpolation="bicubic"), seed=3)
    assert DataSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resize": {"crop_fraction": 0.9}}, "resize has no effect without image_size; set image_size or remove"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ({"validation_fraction": 0.0}, "validation_fraction"),
        ({"image_size": 0}, "image_size"),
        ({"image_size": 8, "resize": {"crop_fraction": 1.5}}, "crop_fraction"),
        ({"max_skipped_fraction": 2}, "max_skipped_fraction"),
        ({"max_pixels": LARGEST_MAX_PIXELS + 1}, "max_pixels"),
        ({"storage": "folder"}, "'auto', 'arrays' or 'encoded'"),
        ({"seed": -1}, "seed"),
        ({"imagesize": 32}, "imagesize"),
        ({"source": {"name": "image_folder"}}, "path"),
    ],
)
def test_setting_that_can_not_be_meant_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataSettings.model_validate({"source": {"name": "digits"}, **values})


def test_every_setting_is_explained() -> None:
    for name, field in {**DataSettings.model_fields, **Resize.model_fields}.items():
        assert field.description, name


def test_settings_and_prepare_load_no_torch() -> None:
    code = (
        "import sys, compress.data.prepare; "
        "print([name for name in ('torch', 'torchvision', 'sklearn', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
