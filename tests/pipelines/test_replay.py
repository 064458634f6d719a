"""A network is trained again from its card, and a file's origin is held against the project."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compress.artifact import load_card
from compress.errors import ArtifactError, ParamsError
from pipelines import distill, export, lineage, prepare, replay, teacher, teacher_logits
from pipelines.lineage import read_facts
from tests.pipelines.project import TRAIN, make_project, params, write_params


@pytest.fixture(scope="module", autouse=True)
def tracking_off() -> Iterator[None]:
    os.environ["COMPRESS_TRACKING"] = "off"
    yield
    del os.environ["COMPRESS_TRACKING"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one student of each group, one of them exported."""
    root = make_project(tmp_path_factory.mktemp("trained"))
    values = params(root / "pictures")
    own = {"model": {"source": "cnn", "channels": [4, 4]}, "method": {"name": "kd"}, "teacher": "alone"}
    values["students"]["self_taught"] = {"pupil": {**own, "train": dict(TRAIN)}}
    write_params(root, values)
    prepare.run(root)
    teacher.run(root)
    teacher_logits.run(root)
    for name in ("with_kd", "alone", "pupil"):
        distill.run(root, name)
    export.run(root, "with_kd")
    return root


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Path:
    """A copy, to change."""
    return Path(shutil.copytree(trained, tmp_path / "project"))


@pytest.mark.parametrize(
    "place", ["with_kd/seed_0/best", "with_kd/seed_1/last", "alone/seed_0/last", "pupil/seed_0/best", "teacher"]
)
def test_replayed_weights_are_the_same_bytes(trained: Path, place: str) -> None:
    outcome = replay.replay(trained, trained / "models" / place)
    assert outcome.differences == ()
    assert outcome.found == outcome.expected == load_card(trained / "models" / place).weights_sha256
    assert not list((trained / ".work" / "replay").iterdir()), "nothing is left behind"


def test_replay_makes_what_is_missing_from_a_card_alone(project: Path) -> None:
    """As in a fresh clone: the card, params.yaml and the pictures."""
    card = project / "elsewhere"
    shutil.copytree(project / "models" / "with_kd" / "seed_0" / "last", card)
    for made in ("data", "models", "exports", "results"):
        shutil.rmtree(project / made)
    outcome = replay.replay(project, card)
    assert outcome.found == outcome.expected
    assert outcome.differences == (
        "the prepared data was made again",
        "the teacher was made again",
        "the teacher's logits were made again",
    )
    assert not (project / "models").exists(), "the project's own files stay as they are"


def test_replay_follows_the_card_and_not_params_yaml(project: Path) -> None:
    values = params(project / "pictures")
    del values["students"]["distilled"]["with_kd"]
    values["students"]["teacher_free"]["alone"]["train"]["epochs"] = 1
    write_params(project, values)
    for place in ("with_kd/seed_0/best", "alone/seed_0/last"):
        outcome = replay.replay(project, project / "models" / place)
        assert outcome.found == outcome.expected


def test_replay_says_what_is_not_as_it_was(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = project / "models" / "alone" / "seed_0" / "last"
    card = json.loads((folder / "card.json").read_text())
    card["origin"]["versions"]["torch"] = "2.13.0"
    card["origin"]["machine"]["processor"] = "another"
    card["weights_sha256"], card["card_sha256"] = "0" * 64, None
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(SystemExit) as end:
        replay.run(project, folder / "card.json")
    assert end.value.code == 1
    printed = capsys.readouterr().out
    assert "replay: torch was 2.13.0, is " in printed
    assert "replay: processor was another, is " in printed
    assert f"the card says {'0' * 64}" in printed


def test_other_data_is_named(project: Path) -> None:
    picture = next((project / "pictures" / "red").iterdir())
    shutil.copy(next((project / "pictures" / "blue").iterdir()), picture)
    shutil.rmtree(project / "data" / "prepared")
    folder = project / "models" / "alone" / "seed_0" / "last"
    card = json.loads((folder / "card.json").read_text())
    card["origin"]["recipe"]["data"]["source"]["path"], card["card_sha256"] = str(project / "pictures"), None
    (folder / "card.json").write_text(json.dumps(card))
    outcome = replay.replay(project, folder)
    assert outcome.found != outcome.expected
    assert any(difference.startswith("data_fingerprint was ") for difference in outcome.differences)


def test_network_that_was_not_trained_cannot_be_replayed(project: Path) -> None:
    folder = project / "models" / "teacher"
    card = json.loads((folder / "card.json").read_text())
    card["origin"] = card["card_sha256"] = None
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(ArtifactError, match="does not say how to train it"):
        replay.replay(project, folder)


# Lineage.


def states(root: Path, path: Path) -> dict[str, str]:
    return {fact.name: fact.state for fact in read_facts(root, path)}


ONNX = Path("exports/with_kd/seed_0/float32.onnx")


def test_everything_an_exported_file_was_made_from_is_found_in_its_project(trained: Path) -> None:
    found = states(trained, trained / ONNX)
    compared = {"file", "weights_sha256", "fingerprint", "data_fingerprint", "teacher_sha256", "teacher_logits_sha256"}
    assert {name: found[name] for name in compared} == dict.fromkeys(compared, "match")
    assert found["params"] == found["training_code_sha256"] == found["torch"] == "match"
    assert states(trained, trained / "models" / "teacher")["data_fingerprint"] == "match"


def test_what_differs_is_told_apart_from_what_is_not_here(project: Path) -> None:
    values = params(project / "pictures")
    values["students"]["distilled"]["with_kd"]["train"]["epochs"] = 7
    write_params(project, values)
    shutil.rmtree(project / "data" / "prepared")
    card = project / "models" / "teacher" / "card.json"
    card.write_text(card.read_text().replace(load_card(card.parent).saved_sha256, "0" * 64))
    for path in (project / "models").glob("with_kd/**/card.json"):
        path.unlink()
    found = states(project, project / ONNX)
    assert found["params"] == "differs"
    assert found["teacher_sha256"] == "differs"
    assert found["data_fingerprint"] == "not here"
    assert found["weights_sha256"] == "not here"
    with pytest.raises(SystemExit):
        lineage.run(project, project / ONNX)


def test_file_alone_is_told_without_a_project(trained: Path, tmp_path: Path) -> None:
    file = shutil.copy(trained / ONNX, tmp_path / "student.onnx")
    found = states(tmp_path, Path(file))
    assert "match" not in {found[name] for name in ("file", "weights_sha256", "data_fingerprint", "params")}


def test_a_hash_leads_to_every_record_that_has_it(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = load_card(trained / "models" / "teacher")
    lineage.find(trained, card.saved_sha256[:12])
    lines = capsys.readouterr().out.splitlines()
    assert f"models/teacher/card.json: weights_sha256 = {card.saved_sha256}" in lines
    assert f"models/with_kd/seed_1/last/card.json: lineage.teacher_sha256 = {card.saved_sha256}" in lines
    assert any(line.startswith("data/teacher_logits/manifest.json: teacher_sha256") for line in lines)
    assert not any("alone" in line for line in lines)


def test_unknown_and_short_hashes_are_said(trained: Path) -> None:
    with pytest.raises(SystemExit):
        lineage.find(trained, "0123456789")
    with pytest.raises(ParamsError, match="at least 7 characters"):
        lineage.find(trained, "01")


def test_what_is_no_network_is_refused(trained: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is no \.onnx file and no folder"):
        lineage.run(trained, trained / "params.yaml")


def test_the_commands_stand_on_the_command_line(trained: Path) -> None:
    command = [sys.executable, "-m", "pipelines", "-C", str(trained), "lineage"]
    result = subprocess.run([*command, "models/teacher"], capture_output=True, text=True, check=False)
    assert "data_fingerprint" in result.stdout
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "name a file, or give --of a hash" in result.stderr


# The same commit, packages, settings and seed on one machine: the same bytes.


def test_two_runs_leave_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    make_project(again)
    shutil.copy(trained / "params.yaml", again / "params.yaml")
    prepare.run(again)
    teacher.run(again)
    teacher_logits.run(again)
    distill.run(again, "with_kd")
    export.run(again, "with_kd")
    for pattern in ("data/**/*", "models/teacher/*", "models/with_kd/**/*", "exports/with_kd/**/*.onnx"):
        for file in filter(Path.is_file, sorted(again.glob(pattern))):
            assert file.read_bytes() == (trained / file.relative_to(again)).read_bytes(), file
