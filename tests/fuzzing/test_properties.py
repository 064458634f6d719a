"""What holds for every params file, manifest, card and checkpoint, on inputs that nobody thought of."""

from __future__ import annotations

import copy
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compress.artifact import load_card
from compress.data.view_schedule import ViewSettings
from compress.errors import ArtifactError, ParamsError
from compress.logit_store import MANIFEST, TeacherLogitsManifest, read_manifest, write_manifest
from compress.models.checkpoint import read_checkpoint
from pipelines.params import load_params
from pipelines.schema import AllParams
from tests.fuzzing.corpus import CORPUS
from tests.pipelines.project import params

few = settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
keys = st.text(max_size=8) | st.sampled_from(["name", "source", "data", "students", "teacher", "train", "seeds"])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=10
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside a value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, of in inner:
        yield from paths(of, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    changed = copy.deepcopy(value)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return changed


VALID = params(Path("pictures"))
PLACES = [path for path in paths(VALID) if path]


@few
@given(values)
def test_any_yaml_is_params_or_a_params_error(folder: Path, content: Any) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ParamsError, match=r"params\.yaml"):
        load_params(AllParams, folder / "params.yaml")


@few
@given(st.sampled_from(PLACES), values)
def test_any_value_in_any_place_is_taken_or_named(folder: Path, place: tuple[Any, ...], new: Any) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(replaced(VALID, place, new)))
    try:
        loaded = load_params(AllParams, folder / "params.yaml")
    except ParamsError as refusal:
        message = str(refusal)
    else:
        assert AllParams.model_validate_json(loaded.model_dump_json()) == loaded
        return
    assert str(place[0]) in message
    assert len(message) < 2000


@few
@given(st.text())
def test_any_text_is_params_or_a_params_error(folder: Path, content: str) -> None:
    (folder / "params.yaml").write_text(content, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ParamsError, match=r"params\.yaml"):
        load_params(AllParams, folder / "params.yaml")


# A changed record is found out.

CARD = json.loads((CORPUS / "model_card" / "seed_cnn").read_bytes())


@few
@given(st.sampled_from([path for path in paths(CARD) if path]), values)
def test_any_change_of_a_card_is_found_out(folder: Path, place: tuple[Any, ...], new: Any) -> None:
    changed = replaced(CARD, place, new)
    (folder / "card.json").write_text(json.dumps(changed, default=str))
    try:
        card = load_card(folder)
    except ArtifactError:
        return
    # What cannot be told apart is what means the same (1.0 for 1), and a card that states no hash.
    assert card.card_sha256 is None or json.loads(card.model_dump_json()) == CARD


def logits_manifest(num_views: int, num_images: int, num_classes: int, dtype: str) -> TeacherLogitsManifest:
    return TeacherLogitsManifest.model_validate(
        {
            "enabled": True,
            "teacher_sha256": "0" * 64,
            "data_fingerprint": "1" * 64,
            "views": ViewSettings(),
            "dtype": dtype,
            "shape": (num_views, num_images, num_classes),
            "rows_per_chunk": max(1, num_views * num_images),
            "chunk_sha256": ["2" * 64],
        }
    )


MANIFEST_OF_LOGITS = json.loads(logits_manifest(2, 3, 4, "float16").model_dump_json())


@few
@given(st.sampled_from([path for path in paths(MANIFEST_OF_LOGITS) if path]), values)
def test_any_change_of_a_teacher_logits_manifest_is_found_out(folder: Path, place: tuple[Any, ...], new: Any) -> None:
    written = json.loads(write_manifest(folder, logits_manifest(2, 3, 4, "float16")).model_dump_json())
    changed = replaced(written, place, new)
    (folder / MANIFEST).write_text(json.dumps(changed, default=str))
    try:
        manifest = read_manifest(folder)
    except ArtifactError:
        return
    assert json.loads(manifest.model_dump_json()) == written, "only another way to write the same"


@few
@given(st.integers(1, 50), st.integers(1, 5000), st.integers(2, 2000), st.sampled_from(["float16", "float32", "uint8"]))
def test_header_of_stored_logits_is_what_numpy_reads(views: int, images: int, classes: int, dtype: str) -> None:
    manifest = logits_manifest(views, images, classes, dtype)
    header = io.BytesIO(manifest.header)
    assert np.lib.format.read_magic(header) == (1, 0)
    shape, is_fortran, found = np.lib.format.read_array_header_1_0(header)
    assert shape[:2] == (views, images)
    assert not is_fortran
    assert header.read() == b""
    row_bytes = found.itemsize * int(np.prod(shape[2:], dtype=int))
    assert manifest.size_bytes == len(manifest.header) + views * images * row_bytes


# Whatever torch writes of plain tensors is read as it was.

TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool]
tensors = st.builds(
    lambda shape, dtype: torch.arange(int(np.prod(shape, dtype=int))).reshape(shape).to(dtype),
    st.lists(st.integers(0, 4), max_size=4).map(tuple),
    st.sampled_from(TYPES),
)


@few
@given(st.dictionaries(st.text(min_size=1, max_size=12), tensors, min_size=1, max_size=5), st.booleans())
def test_any_state_dict_of_plain_tensors_is_read(folder: Path, state: dict[str, torch.Tensor], is_zip: bool) -> None:
    state = {f"layer.{name}": tensor for name, tensor in state.items()}
    torch.save({"model": state, "epoch": 3}, folder / "any.pth", _use_new_zipfile_serialization=is_zip)
    found = read_checkpoint(folder / "any.pth", network_bytes=1000).tensors
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
