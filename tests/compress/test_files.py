"""JSON files that notice when they are changed."""

import json
from pathlib import Path

import pytest

from compress.errors import ArtifactError
from compress.files import check_files, read_json, write_json, write_record


def test_record_comes_back_without_its_hash(tmp_path: Path) -> None:
    write_record(tmp_path / "x.json", {"b": (1, 2.5), "a": {2: "ö", 10: None}})
    assert read_json(tmp_path / "x.json", made_by="any") == {"b": [1, 2.5], "a": {"2": "ö", "10": None}}


def test_record_that_was_read_as_plain_json_can_be_written_again(tmp_path: Path) -> None:
    write_record(tmp_path / "x.json", {"a": 1})
    write_record(tmp_path / "x.json", {**json.loads((tmp_path / "x.json").read_text()), "a": 2})
    assert read_json(tmp_path / "x.json", made_by="any") == {"a": 2}


def test_changed_number_is_refused_by_name(tmp_path: Path) -> None:
    write_record(tmp_path / "x.json", {"accuracy": 0.5})
    path = tmp_path / "x.json"
    path.write_text(path.read_text().replace("0.5", "0.9"))
    with pytest.raises(ArtifactError, match=r"x\.json was changed after it was written.*run the evaluate stage again"):
        read_json(path, made_by="evaluate")


@pytest.mark.parametrize("text", ["[1]", "3", '"x"', "null", "{", "", "[" * 100_000])
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"x\.json .*run the evaluate stage again"):
        read_json(tmp_path / "x.json", made_by="evaluate")


def test_missing_key_is_refused_by_name(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"hello": 1})
    with pytest.raises(ArtifactError, match=r"x\.json has no 'seeds': it is not what the distill stage writes"):
        read_json(tmp_path / "x.json", made_by="distill")["seeds"]


def test_files_are_held_against_the_hashes_that_a_record_keeps(tmp_path: Path) -> None:
    (tmp_path / "y.csv").write_text("1")
    sha256 = "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    check_files(tmp_path, {"hashes": {"y.csv": sha256}}, made_by="evaluate")
    (tmp_path / "y.csv").write_text("2")
    with pytest.raises(ArtifactError, match=r"y\.csv is not the file that was written"):
        check_files(tmp_path, {"hashes": {"y.csv": sha256}}, made_by="evaluate")
    (tmp_path / "y.csv").unlink()
    with pytest.raises(ArtifactError, match=r"y\.csv cannot be read"):
        check_files(tmp_path, {"hashes": {"y.csv": sha256}}, made_by="evaluate")
