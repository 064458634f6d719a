"""Hashes that change with everything that matters and with nothing else."""

from pathlib import Path

import pytest

from compress.fingerprint import file_sha256, fingerprint, fingerprint_of_files


def test_key_order_does_not_matter_and_values_do() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})
    assert fingerprint({"a": [1, 2]}) != fingerprint({"a": [2, 1]})


def test_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint({"a": float("nan")})


def test_file_hash_is_sha256(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_files_hash_follows_their_contents(tmp_path: Path) -> None:
    first, second = tmp_path / "a.py", tmp_path / "b.py"
    first.write_text("1")
    second.write_text("2")
    before = fingerprint_of_files([first, second])
    assert fingerprint_of_files([second, first]) == before
    second.write_text("3")
    assert fingerprint_of_files([first, second]) != before


def test_files_of_one_name_in_two_folders_both_count(tmp_path: Path) -> None:
    files = [tmp_path / folder / "same.py" for folder in ("first", "second")]
    for file in files:
        file.parent.mkdir()
        file.write_text("1")
    before = fingerprint_of_files(files)
    files[0].write_text("2")
    assert fingerprint_of_files(files) != before
