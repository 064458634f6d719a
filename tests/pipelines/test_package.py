"""Any student as a deploy folder, and what the commands around such folders print, write and refuse."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from compress.errors import ArtifactError, DataError, SelectionError
from compress.files import write_record
from compress.triton import check_repository
from compress.verify import verify_deploy
from pipelines import deploy_folder, distill, evaluate, export, package, predict, prepare, select, teacher, verify
from tests.compress.load_records import RECORD
from tests.pipelines.project import TRAIN, params, write_images, write_params


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with two students and no teacher whose stages have all run."""
    os.environ["COMPRESS_TRACKING"] = "off"
    root = tmp_path_factory.mktemp("finished")
    values = params(write_images(root / "pictures", per_class=10))
    rows: dict[str, Any] = {
        name: {
            "model": {"source": "cnn", "channels": channels},
            "method": {"name": "cross_entropy"},
            "train": TRAIN,
        }
        for name, channels in (("small", [4, 4]), ("smaller", [2, 2]))
    }
    write_params(root, {**values, "teacher": None, "teacher_logits": {}, "students": {"teacher_free": rows}})
    prepare.run(root)
    teacher.run(root)
    for name in ("teacher", *rows):
        if name != "teacher":
            distill.run(root, name)
        export.run(root, name)
        evaluate.run(root, name)
    select.run(root)
    yield root
    del os.environ["COMPRESS_TRACKING"]


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """A copy, to write into and to break."""
    return Path(shutil.copytree(finished, tmp_path / "project"))


def table(root: Path) -> dict[str, Any]:
    return json.loads((root / "metrics" / "students.json").read_text())


def other_student(root: Path) -> str:
    """Whoever is not the champion."""
    return next(row["name"] for row in table(root)["students"] if not row["champion"])


def test_select_ships_the_float_form_and_the_bill_of_materials(finished: Path) -> None:
    assert {"model.onnx", "model.float.onnx", "sbom.cdx.json"} <= {
        path.name for path in (finished / "deploy").iterdir()
    }
    assert not (finished / "deploy" / "triton").exists()
    verify_deploy(finished / "deploy")


def test_champion_is_packaged_byte_for_byte_like_the_select_stage_did(project: Path) -> None:
    folder = package.run(project, None, output=None, triton=False)
    assert folder == project / "packages" / table(project)["champion"]
    for path in (project / "deploy").rglob("*"):
        if path.is_file():
            assert (folder / path.relative_to(project / "deploy")).read_bytes() == path.read_bytes(), path.name


def test_any_other_student_is_packaged_and_says_why_it_was_not_chosen(project: Path) -> None:
    name = other_student(project)
    folder = package.run(project, name, output=project / "out", triton=True)
    row = next(row for row in table(project)["students"] if row["name"] == name)
    assert verify_deploy(folder).sha256 == row["sha256"]
    assert f"it is not the champion: {row['reason']}" in (folder / "model_card.md").read_text()
    check_repository(folder / "triton", name)
    assert f"triton/{name}/1/model.onnx is a second copy of model.onnx" in package.described(folder)


def test_file_is_packaged_by_its_path_with_what_it_says_of_itself(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"exports/{other_student(project)}/seed_0/float32.onnx"
    monkeypatch.chdir(project)
    folder = package.run(project, path, output=None, triton=False)
    assert folder == project / "packages" / "float32"
    card = (folder / "model_card.md").read_text()
    assert "trained with `cross_entropy`" in card
    assert "| top-1 accuracy on test | not measured |" in card
    verify_deploy(folder)


def write_load_test(root: Path, sha256: str) -> Path:
    path = root / "load.json"
    write_record(path, {**RECORD, "model_sha256": sha256})
    return path


@pytest.mark.parametrize("by_path", [False, True])
def test_load_test_of_the_same_file_stands_in_the_card(
    project: Path, by_path: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = other_student(project)
    row = next(row for row in table(project)["students"] if row["name"] == name)
    monkeypatch.chdir(project)
    what = row["file"] if by_path else name
    folder = package.run(project, what, output=project / "out", load_test=write_load_test(project, row["sha256"]))
    assert "| PNG, 32 x 32 px | 32 | 100,000 | 0 |" in (folder / "model_card.md").read_text()
    verify_deploy(folder)


def test_load_test_of_another_model_is_refused(project: Path) -> None:
    with pytest.raises(ArtifactError, match="the load test was made with another model"):
        package.run(project, None, output=project / "out", load_test=write_load_test(project, "cd" * 32))
    assert not (project / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"not_answered": 0', '"not_answered": 1', "was changed after it was written"),
        ('"record_sha256"', '"another_sha256"', "no record of a load test: another_sha256: Extra inputs"),
        ("{", "", "is damaged"),
    ],
)
def test_damaged_load_test_is_refused(project: Path, old: str, new: str, message: str) -> None:
    path = write_load_test(project, table(project)["students"][0]["sha256"])
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ArtifactError, match=message):
        package.run(project, None, output=project / "out", load_test=path)
    assert not (project / "out").exists()


def test_load_test_whose_failures_were_taken_out_is_refused(project: Path) -> None:
    path = project / "load.json"
    run = {**RECORD["runs"][0], "by_server": {"200": 100_000, "503": 5}}
    write_record(path, {**RECORD, "runs": [run]})
    with pytest.raises(ArtifactError, match=r"runs\.0: .*the server counted failures that are missing"):
        package.run(project, None, output=project / "out", load_test=path)


def test_unknown_student_is_refused_with_the_known_ones(project: Path) -> None:
    with pytest.raises(SelectionError, match=r"no nobody in the table of students; name one of .*small"):
        package.run(project, "nobody", output=None, triton=False)
    with pytest.raises(SelectionError, match="no small/int8_static in the table"):
        package.run(project, "small/int8_static", output=None, triton=False)


def test_file_that_was_changed_after_its_export_is_refused(project: Path) -> None:
    path = project / "exports" / "small" / "seed_0" / "float32.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"float32\.onnx was changed after it was exported"):
        package.run(project, "small", output=None, triton=False)
    assert not (project / "packages").exists()


def test_folder_that_holds_other_things_is_not_written_into(project: Path) -> None:
    with pytest.raises(ArtifactError, match="holds other files"):
        package.run(project, "small", output=project / "pictures", triton=False)


def test_versions_are_those_of_the_lock_file_where_there_is_one(tmp_path: Path) -> None:
    assert set(deploy_folder.runtime_versions(tmp_path)) == {"numpy", "onnxruntime"}
    pinned = ["numpy==2.4.6 \\", "    --hash=sha256:00", "    # via x==1", "idna==3.1", "colorama==0.4 ; os == 'x' \\"]
    (tmp_path / "requirements-serve.lock").write_text("\n".join(pinned))
    assert deploy_folder.runtime_versions(tmp_path) == {"numpy": "2.4.6", "idna": "3.1"}


def test_predictions_are_printed_or_written(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict.run(finished / "deploy", [finished / "pictures" / "red"], output=None, top_k=2, threads=1)
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith(f"{finished}/pictures/red/000.png: ")
    assert "10 pictures answered" in shown.err
    model = finished / "deploy" / "model.onnx"
    predict.run(model, [finished / "pictures"], output=tmp_path / "p.csv", top_k=3, threads=1)
    assert capsys.readouterr().out == ""
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30 * 3
    best = {row["image"]: row["label"] for row in rows if row["rank"] == "1"}
    for line in lines:
        name, _, answer = line.partition(": ")
        assert best[name] == answer.split()[0]


def test_bad_pictures_are_named_and_only_nothing_but_bad_ones_is_an_error(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "good.png")
    model = finished / "deploy" / "model.onnx"
    predict.run(model, [tmp_path], output=None, top_k=1, threads=1)
    shown = capsys.readouterr()
    assert f"skipped {tmp_path}/bad.png: not an image" in shown.err
    assert "1 pictures answered, 1 skipped" in shown.err
    with pytest.raises(DataError, match="none of 1 pictures could be used"):
        predict.run(model, [tmp_path / "bad.png"], output=tmp_path / "p.json", top_k=1, threads=1)
    assert json.loads((tmp_path / "p.json").read_text())[0]["problem"].startswith("not an image")


def test_changed_folder_is_not_used_for_predictions(project: Path) -> None:
    (project / "deploy" / "labels.json").write_text('["red", "green", "blue"]')
    with pytest.raises(ArtifactError, match=r"labels\.json was changed"):
        predict.run(project / "deploy", [project / "pictures"], output=None, top_k=1, threads=1)


def test_comparison_is_printed_drawn_and_written(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [finished / "exports" / name / "seed_0" / "float32.onnx" for name in ("small", "smaller")]
    images = [finished / "pictures"]
    predict.compare(*files, images, sheet=tmp_path / "s.png", output=tmp_path / "c.json", threads=1)
    numbers = json.loads((tmp_path / "c.json").read_text())
    shown = capsys.readouterr().out
    assert f"agreement          {numbers['agreement']:.2%}" in shown
    assert f"a {numbers['accuracy_a']:.2%}, b {numbers['accuracy_b']:.2%} on 30 pictures in class folders" in shown
    assert numbers["agreement"] == 1 - len(numbers["disagreements"]) / 30
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.format == "PNG"


def test_verification_and_prediction_need_no_torch() -> None:
    program = "import pipelines.verify, pipelines.predict, sys; assert not {'torch', 'onnx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


def test_verification_says_who_signed_and_refuses_a_changed_byte(project: Path) -> None:
    pytest.importorskip("model_signing.signing", reason="model-signing cannot be imported", exc_type=ImportError)
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.BestAvailableEncryption(b"secret"),
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (project / "key.pem").write_bytes(private)
    (project / "key.pub").write_bytes(public)
    (project / "password").write_text("secret\n")
    folder = project / "deploy"
    written = verify.sign(folder, key=project / "key.pem", password_file=project / "password", signature=None)
    assert written == project / "deploy.sig"
    told = verify.run(folder, manifest_sha256=None, public_key=project / "key.pub", signature=None)
    assert f"signed by the holder of {project / 'key.pub'}" in told
    content = bytearray((folder / "model.onnx").read_bytes())
    content[40] ^= 1
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"Hash mismatch for 'model\.onnx'"):
        verify.run(folder, manifest_sha256=None, public_key=project / "key.pub", signature=None)
    with pytest.raises(ArtifactError, match=r"model\.onnx was changed"):
        verify.sign(folder, key=project / "key.pem", password_file=project / "password", signature=None)
