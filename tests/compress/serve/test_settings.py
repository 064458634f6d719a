"""Settings are documented and refuse what makes no sense."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import pytest
from onnx import helper
from pydantic import ValidationError

from compress.errors import ArtifactError
from compress.serve import Limits, ServeSettings, load_served_model
from compress.serve.app import _routes
from compress.serve.errors import ServeError
from tests.compress.deployed_student import PREPROCESSING, write_folder

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
SHOWN = {
    "host": "127.0.0.1",
    "port": "8000",
    "token_file": "none",
    "manifest_sha256": "none",
    "max_batch": "32",
    "log_requests": "true",
}
"""Defaults that are no plain numbers."""
CODE = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "compress" / "serve").glob("*.py"))


@pytest.mark.parametrize("name", sorted({*ServeSettings.model_fields, *Limits.model_fields} - {"folder", "limits"}))
def test_every_setting_is_documented_with_its_default(name: str) -> None:
    (row,) = [line for line in DOCUMENT.splitlines() if re.match(rf"\| [^|]*`{name}`", line)]
    default = {**ServeSettings.model_fields, **Limits.model_fields}[name].default
    shown = SHOWN[name] if name in SHOWN else f"{default:,.0f}"  # noqa: SIM401  None has no such format
    assert shown in row.split("|")[2]


@pytest.mark.parametrize(
    "code", sorted({*re.findall(r'RequestError\(\s*\d+, "(\w+)"', CODE), *re.findall(r'"?code"?[=:] "(\w+)"', CODE)})
)
def test_every_error_code_is_documented(code: str) -> None:
    assert f"`{code}`" in DOCUMENT


@pytest.mark.parametrize("path", sorted({route.path for route in _routes()}))
def test_every_route_is_documented(path: str) -> None:
    shown = path.replace("{model}", "{name}").replace("/versions/{version}", "")
    endings = (shown, shown.removesuffix("/ready"))
    assert any(f"{ending}`" in DOCUMENT or f"{ending}?" in DOCUMENT for ending in endings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 65_536},
        {"port": -1},
        {"host": ""},
        {"threads": 0},
        {"max_batch": 0},
        {"max_delay_ms": -1},
        {"manifest_sha256": "abc"},
        {"token": "in-the-settings-it-would-be-shown"},
        {"limits": {"max_pixels": 10**9}},
        {"limits": {"read_timeout_s": float("inf")}},
        {"limits": {"max_body": 1}},
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ServeSettings.model_validate({"folder": "deploy", **wrong})


def test_batches_are_off_where_answers_depend_on_them(deployed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_served_model(ServeSettings(folder=deployed)).max_batch == 32
    assert load_served_model(ServeSettings(folder=deployed, max_batch=3)).max_batch == 3
    monkeypatch.setattr("compress.verify.answers_depend_on_batch", lambda answer, images: True)
    assert load_served_model(ServeSettings(folder=deployed)).max_batch == 1
    assert load_served_model(ServeSettings(folder=deployed, max_batch=1)).max_batch == 1
    with pytest.raises(ServeError, match=r"max_batch is 3, .* set max_batch to 1"):
        load_served_model(ServeSettings(folder=deployed, max_batch=3))


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({"name": "a/b"}, "has the name 'a/b' in its metadata"),
        ({"name": None}, "has the name None"),
        ({"preprocessing": {**PREPROCESSING.model_dump(mode="json"), "mean": 0.5}}, r"\(preprocessing\.mean: "),
        ({"preprocessing": {"height": 24, "width": 24}}, r"\(preprocessing\.resize: Field required\)"),
    ],
)
def test_model_that_does_not_say_enough_is_refused(
    tmp_path: Path, student_file: Path, metadata: dict[str, object], told: str
) -> None:
    model = onnx.load(student_file)
    found = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, {**found, **{key: json.dumps(value) for key, value in metadata.items()}})
    onnx.save(model, tmp_path / "model.onnx")
    folder = write_folder(tmp_path / "deploy", tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match=told):
        load_served_model(ServeSettings(folder=folder))
