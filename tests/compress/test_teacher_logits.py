"""Stored answers equal the live teacher's, and a store that is not exactly the expected one is refused by name."""

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from compress.batches import epoch_batches
from compress.data.prepared import ArraySplit
from compress.errors import ArtifactError, ParamsError
from compress.logit_store import LOGITS, MANIFEST, TeacherLogitsManifest, read_manifest
from compress.methods import DKD, KD, NKD, TTM, WTTM, LogitMethod, LogitStandardization, TeacherMethod
from compress.teacher_logits import (
    OnlineTeacher,
    TeacherLogitsSettings,
    check_method_fits_store,
    open_teacher_logits,
    verify_against_teacher,
)
from compress.tensors import as_float_images
from compress.train import train_epochs
from compress.training_state import EpochReport
from tests.compress import toy, toy_store

FORMS: list[dict[str, Any]] = [
    {"dtype": "float32"},
    {"dtype": "float16"},
    {"dtype": "uint8"},
    {"dtype": "float16", "top_k": 2},
]


def form_name(form: dict[str, Any]) -> str:
    return "top_k" if "top_k" in form else form["dtype"]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    toy_store.write(tmp_path / "store")
    return tmp_path / "store"


def test_stored_answers_equal_the_live_teachers(store: Path) -> None:
    stored, online = toy_store.opened(store), OnlineTeacher(toy_store.network())
    for epoch in range(5):
        for batch in epoch_batches(toy.data(), 8, epoch=epoch, seed=epoch):
            images = as_float_images(batch.images, toy_store.CPU)
            torch.testing.assert_close(
                stored.logits(images, batch.indices, batch.slots),
                online.logits(images, batch.indices, batch.slots),
                rtol=0, atol=1e-5,  # another batch, and a folded normalisation, sum in another order
            )  # fmt: skip


def test_training_with_stored_answers_follows_training_with_the_live_teacher(store: Path) -> None:
    losses = []
    for teacher in (toy_store.opened(store), OnlineTeacher(toy_store.network())):
        state = toy.state(method=KD(), teacher=teacher)
        reports = train_epochs(state, toy.data(), settings=toy.SETTINGS, seed=0)
        losses.append([report.train_loss for report in reports if isinstance(report, EpochReport)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("form", FORMS, ids=form_name)
def test_the_stated_errors_are_the_largest_there_are(tmp_path: Path, form: dict[str, Any]) -> None:
    toy_store.write(tmp_path / "exact")
    stated = toy_store.write(tmp_path / "other", **form)
    slots, indices = (each.ravel() for each in np.meshgrid(np.arange(4), np.arange(26)))
    nothing = torch.zeros(len(slots), 3, 8, 8)
    exact, other = (toy_store.opened(tmp_path / name).logits(nothing, indices, slots) for name in ("exact", "other"))
    difference = (exact - other).abs()
    if "top_k" in form:
        difference = difference.gather(1, exact.topk(2, dim=1).indices)
    assert stated.max_abs_error == float(difference.max())
    probability_error = float((exact.softmax(dim=1) - other.softmax(dim=1)).abs().max())
    assert stated.max_probability_error == pytest.approx(probability_error, abs=1e-6)
    assert (stated.max_abs_error > 0) == (form["dtype"] != "float32")


def test_the_manifest_says_how_the_answers_were_computed(store: Path) -> None:
    manifest = read_manifest(store)
    assert manifest.computation is not None
    assert manifest.computation.model_dump() == {
        "precision": "float32",
        "device": "cpu",
        "threads": 1,
        "batch_size": 4,
        "folded_batch_norms": 1,
        "runtime": f"torch {torch.__version__}",
        "torch": torch.__version__,
    }
    assert 0 <= manifest.pass_error < 1e-4
    assert manifest.num_pass_samples == 16


def test_float_rows_are_a_plain_array_for_others(store: Path) -> None:
    assert np.load(store / LOGITS).shape == (4, 26, toy.NUM_CLASSES)


@pytest.mark.parametrize(("slot", "index"), [(4, 0), (-1, 0), (0, 26), (1, -1)])
def test_an_answer_that_is_not_there_is_an_error_and_not_another_one(store: Path, slot: int, index: int) -> None:
    nothing = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="coordinates"):
        toy_store.opened(store).logits(nothing, np.array([index]), np.array([slot]))


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher_sha256": "x" * 64},
        {"data_fingerprint": "x" * 64},
        {"views": toy.VIEWS.model_copy(update={"seed": 6})},
        {"dtype": "float16"},
        {"top_k": 2},
        {"shape": (4, 27, toy.NUM_CLASSES)},
        {"enabled": False},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_answers_to_other_questions_are_refused_by_name(store: Path, changes: dict[str, Any]) -> None:
    expected = read_manifest(store).model_copy(update=changes)
    with pytest.raises(ArtifactError, match=rf"another {next(iter(changes))}.*run the teacher_logits stage again"):
        open_teacher_logits(store, expected)


def test_what_is_expected_of_a_store_can_be_said_without_its_teacher(store: Path) -> None:
    manifest = read_manifest(store)
    without = manifest.expecting(data_fingerprint=toy_store.DATA, views=toy.VIEWS)
    assert without == manifest
    other = manifest.expecting(data_fingerprint=toy_store.DATA, views=toy.VIEWS, teacher_sha256="e" * 64)
    with pytest.raises(ArtifactError, match=r"another teacher_sha256: aaaa.*expected eeee"):
        open_teacher_logits(store, other)


def test_a_store_that_is_switched_off_is_not_opened(tmp_path: Path) -> None:
    from compress.teacher_logits_writer import write_switched_off

    manifest = write_switched_off(tmp_path, toy_store.settings(enabled=False), toy_store.question())
    assert read_manifest(tmp_path) == manifest
    assert not manifest.enabled
    with pytest.raises(ValueError, match="switched off"):
        open_teacher_logits(tmp_path, manifest)


def swapped(content: bytes, first: slice, second: slice) -> bytes:
    changed = bytearray(content)
    changed[first], changed[second] = content[second], content[first]
    return bytes(changed)


ROW, CHUNK = 4 * toy.NUM_CLASSES, 40 * toy.NUM_CLASSES
"""Bytes."""


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda header, rows: header + rows[:-4], r"logits.npy has \d+ bytes, \d+ were written"),
        (lambda header, rows: header + rows + b"\0", r"logits.npy has \d+ bytes, \d+ were written"),
        (lambda header, rows: header + bytes([rows[0] ^ 1]) + rows[1:], "chunk 0 of 11, view 0 of image 0 to view 0"),
        (
            lambda header, rows: header + rows[:-1] + bytes([rows[-1] ^ 128]),
            "chunk 10 of 11, view 3 of image 22 to view 3 of image 25",
        ),
        (
            lambda header, rows: header + swapped(rows, slice(3 * CHUNK, 3 * CHUNK + ROW), slice(-ROW, None)),
            "chunk 3 of 11",
        ),
        (
            lambda header, rows: header + swapped(rows, slice(CHUNK, 2 * CHUNK), slice(4 * CHUNK, 5 * CHUNK)),
            "chunk 1 of 11",
        ),
        (lambda header, rows: header.replace(b"(4, 26,", b"(26, 4,") + rows, "another header"),
    ],
    ids=["truncated", "extended", "first bit", "last bit", "two rows exchanged", "two chunks exchanged", "header"],
)
def test_a_changed_file_is_refused_and_the_place_is_named(store: Path, damage: Any, message: str) -> None:
    path, size = store / LOGITS, len(read_manifest(store).header)
    content = path.read_bytes()
    path.write_bytes(damage(content[:size], content[size:]))
    with pytest.raises(ArtifactError, match=rf"{message}.*run the teacher_logits stage again"):
        toy_store.opened(store)


def test_a_missing_file_is_refused(store: Path) -> None:
    (store / LOGITS).unlink()
    with pytest.raises(ArtifactError, match=r"logits\.npy can not be read.*run the teacher_logits stage"):
        toy_store.opened(store)


def test_rows_that_another_process_verified_need_not_be_verified_again(store: Path) -> None:
    path = store / LOGITS
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    assert open_teacher_logits(store, read_manifest(store), verify_rows=False).manifest.num_rows == toy_store.NUM_ROWS


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_abs_error", 1.0), ("teacher_sha256", "b" * 64), ("chunk_sha256", ["c" * 64] * 11), ("sha256", "d" * 64)],
)
def test_a_manifest_that_was_changed_is_refused(store: Path, field: str, value: Any) -> None:
    path = store / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(ArtifactError, match=r"manifest\.json was changed after it was written"):
        read_manifest(store)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "its JSON"),
        ('{"enabled": true}', "teacher_sha256: Field required"),
        ('{"format_version": 2}', "another version .format_version"),
    ],
)
def test_a_damaged_manifest_or_one_of_another_version_is_refused(store: Path, text: str, message: str) -> None:
    (store / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match=rf"{message}.*run the teacher_logits stage again"):
        read_manifest(store)


def test_a_missing_store_names_the_stage_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"manifest\.json is missing; run the teacher_logits stage"):
        read_manifest(tmp_path / "store")


@pytest.mark.parametrize("form", FORMS, ids=form_name)
def test_the_teacher_itself_confirms_its_store(tmp_path: Path, form: dict[str, Any]) -> None:
    stated = toy_store.write(tmp_path / "store", **form)
    store = toy_store.opened(tmp_path / "store")
    difference = verify_against_teacher(store, toy.data().train, toy_store.network())
    assert difference <= stated.max_abs_error + 1e-4


def test_a_rounded_pass_is_confirmed_within_its_measured_error(tmp_path: Path) -> None:
    from compress.teacher_logits_writer import write_teacher_logits

    asked = toy_store.teacher(precision="bfloat16")
    manifest = toy_store.planned(asked, precision="bfloat16")
    list(write_teacher_logits(tmp_path / "store", toy.data().train, asked, manifest=manifest))
    store = toy_store.opened(tmp_path / "store")
    assert store.manifest.pass_error == asked.error > 1e-3
    assert 1e-3 < verify_against_teacher(store, toy.data().train, toy_store.network()) < 3 * asked.error


def test_another_teacher_is_noticed_behind_fitting_hashes(store: Path) -> None:
    with pytest.raises(ArtifactError, match=r"not this teacher's answers.*differs by.*run the teacher_logits stage"):
        verify_against_teacher(toy_store.opened(store), toy.data().train, toy_store.network(seed=8))


@pytest.mark.parametrize("form", FORMS, ids=form_name)
def test_reordered_rows_are_noticed_behind_fitting_hashes(tmp_path: Path, form: dict[str, Any]) -> None:
    manifest = toy_store.write(tmp_path / "store", **form)
    rows = (tmp_path / "store" / LOGITS).read_bytes()[len(manifest.header) :]
    size = manifest.row_format.row_bytes
    toy_store.forge(tmp_path / "store", rows[size:] + rows[:size])
    with pytest.raises(ArtifactError, match=r"not this teacher's answers.*view \d of image \d+ differs by"):
        verify_against_teacher(toy_store.opened(tmp_path / "store"), toy.data().train, toy_store.network())


def test_other_views_are_noticed_behind_fitting_hashes(store: Path) -> None:
    toy_store.forge(store, views=toy.VIEWS.model_copy(update={"seed": 6}))
    with pytest.raises(ArtifactError, match="not this teacher's answers"):
        verify_against_teacher(toy_store.opened(store), toy.data().train, toy_store.network())


def test_other_images_are_noticed_behind_fitting_hashes(store: Path) -> None:
    with pytest.raises(ArtifactError, match="not this teacher's answers"):
        verify_against_teacher(toy_store.opened(store), toy.split(26, seed=9), toy_store.network())


def test_another_number_of_images_or_classes_is_noticed(store: Path) -> None:
    opened, images = toy_store.opened(store), toy.data().train
    assert isinstance(images, ArraySplit)
    with pytest.raises(ArtifactError, match="about 26 images of 25"):
        verify_against_teacher(opened, toy.split(25, seed=0), toy_store.network())
    two = toy_store.network()
    two[-1] = torch.nn.Linear(6, 2)  # type: ignore[index]
    with pytest.raises(ArtifactError, match="it has 2 classes, they have 3"):
        verify_against_teacher(opened, images, two)


def with_largest_logits() -> TeacherLogitsManifest:
    return toy_store.planned(dtype="float16", top_k=2)


@pytest.mark.parametrize(
    "method", [KD(temperature=1), NKD(temperature=1), DKD(temperature=1), TTM(gamma=1), WTTM(gamma=1)]
)
def test_a_method_on_probabilities_as_they_are_fits_the_largest_logits(method: TeacherMethod) -> None:
    check_method_fits_store(method, with_largest_logits())


@pytest.mark.parametrize(
    ("method", "cure"),
    [
        (KD(temperature=4), "kd with temperature: 4.0.*set temperature: 1"),
        (NKD(temperature=3), "nkd with temperature: 3.0.*set temperature: 1"),
        (DKD(temperature=4), "dkd with temperature: 4.0.*set temperature: 1"),
        (TTM(gamma=0.1), "ttm with gamma: 0.1.*set gamma: 1"),
        (WTTM(gamma=0.2), "wttm with gamma: 0.2.*set gamma: 1"),
        (LogitStandardization(method=KD(temperature=1)), "logit_standardization is not known to work"),
    ],
)
def test_a_method_that_softens_is_refused_the_largest_logits_by_name(method: TeacherMethod, cure: str) -> None:
    with pytest.raises(ParamsError, match=f"{cure}.*leave out teacher_logits.top_k|{cure}"):
        check_method_fits_store(method, with_largest_logits())


@pytest.mark.parametrize("kind", get_args(get_args(LogitMethod)[0]), ids=lambda kind: kind.__name__)
def test_every_method_fits_a_whole_store_and_softened_ones_no_other(kind: type[TeacherMethod]) -> None:
    method = kind()
    for form in ({"dtype": "float16"}, {"dtype": "uint8"}):
        check_method_fits_store(method, toy_store.planned(**form))
    if method.model_dump().get("temperature", 4) != 1:
        with pytest.raises(ParamsError, match=method.model_dump()["name"]):
            check_method_fits_store(method, with_largest_logits())


def test_the_largest_logits_lose_what_a_softened_loss_lives_on() -> None:
    """Why they are refused: hundred classes, the ten largest kept."""
    from compress.logit_rows import LargestLogits

    random = torch.Generator().manual_seed(0)
    teacher, student = (4 * torch.randn(256, 100, generator=random) for _ in range(2))
    labels = teacher.argmax(dim=1)
    form = LargestLogits(100, 10)
    stored = torch.from_numpy(form.decode(form.encode(teacher.numpy())))

    def relative_error(temperature: float) -> float:
        method = KD(temperature=temperature)
        gradients = []
        for logits in (teacher, stored):
            learner = student.clone().requires_grad_()
            method.soft(learner, logits, labels).backward()
            assert learner.grad is not None
            gradients.append(learner.grad)
        return float((gradients[0] - gradients[1]).norm() / gradients[0].norm())

    assert relative_error(1.0) < 0.1
    assert relative_error(4.0) > 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "uint8", "top_k": 2}, "leave out top_k or dtype: uint8"),
        ({"dtype": "float32", "top_k": 2}, "leave out top_k or dtype: float32"),
        ({"max_precision_error": 0.5}, "max_precision_error has an effect with precision: auto only"),
        ({"backend": "onnxruntime", "precision": "bfloat16"}, "onnxruntime computes in float32, not bfloat16"),
        ({"backend": "openvino", "precision": "tensorfloat32"}, "on the CPU, which has no tensorfloat32"),
        ({"backend": "tensorrt"}, "Input should be"),
        ({"dtype": "float64"}, "Input should be"),
        ({"precision": "float16"}, "Input should be"),
    ],
)
def test_settings_that_have_no_effect_or_no_meaning_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TeacherLogitsSettings(**changes)


def test_keeping_as_many_logits_as_there_are_classes_is_refused() -> None:
    with pytest.raises(ParamsError, match="top_k: 3 keeps all of 3 classes"):
        toy_store.planned(dtype="float16", top_k=3)
