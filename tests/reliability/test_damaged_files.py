"""Every file that a stage left is verified by the stage that reads it: damage is refused by name, with what to do."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.reliability.small_project import reader_of, refusal

OUTPUTS = ("data", "models", "results", "exports", "metrics", "deploy")


def flipped(content: bytes) -> bytes:
    """One bit of the middle digit: text stays well-formed, numbers change."""
    changed, place = bytearray(content), len(content) // 2
    digits = [index for index in range(place, len(changed)) if chr(changed[index]).isdigit()]
    changed[digits[0] if digits else place] ^= 1
    return bytes(changed)


FAULTS: dict[str, Callable[[bytes], bytes | None]] = {
    "a flipped bit": flipped,
    "cut in the middle": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "another JSON": lambda content: b'{"hello": 1}\n',
    "a JSON list": lambda content: b"[1]\n",
    "deleted": lambda content: None,
}


def readers(finished: Path) -> Iterator[tuple[str, str]]:
    """Every file with the stage that reads it."""
    for folder in OUTPUTS:
        for path in sorted((finished / folder).rglob("*")):
            name = path.relative_to(finished).as_posix()
            if path.is_file() and (stage := reader_of(name)) is not None:
                yield name, stage


def outcomes(finished: Path, scratch: Path, *, keep: Callable[[str], bool]) -> dict[tuple[str, str], str | None]:
    """What a person sees for each file and fault."""
    found: dict[tuple[str, str], str | None] = {}
    for name, stage in readers(finished):
        for fault, damage in FAULTS.items():
            if not keep(name) or ("JSON" in fault and not name.endswith(".json")):
                continue
            root = Path(shutil.copytree(finished, scratch / "project"))
            content = damage((root / name).read_bytes())
            (root / name).unlink()
            if content is not None:
                (root / name).write_bytes(content)
            found[name, fault] = refusal(root, stage)
            shutil.rmtree(root)
    return found


def test_every_kind_of_file_is_refused_by_name_when_it_is_damaged(finished: Path, tmp_path: Path) -> None:
    kinds = (
        "data/prepared/train.images.npy",
        "data/teacher_logits/manifest.json",
        "models/teacher/card.json",
        "results/with_nkd/training.json",
        "results/with_nkd/details.json",
        "exports/with_nkd/export.json",
        "metrics/students.json",
    )
    found = outcomes(finished, tmp_path, keep=lambda name: name in kinds)
    assert {name for name, _ in found} == set(kinds)
    check(found)


@pytest.mark.slow
def test_every_file_of_every_stage_is_refused_by_name_when_it_is_damaged(finished: Path, tmp_path: Path) -> None:
    found = outcomes(finished, tmp_path, keep=lambda name: True)
    for (name, fault), line in found.items():
        print(f"| {name} | {fault} | {reader_of(name)} | {str(line).replace(str(tmp_path / 'project') + '/', '')} |")
    check(found)


def check(found: dict[tuple[str, str], str | None]) -> None:
    """Each line names the file, or its folder, and a way on."""
    accepted = [key for key, line in found.items() if line is None]
    assert not accepted, f"accepted: {accepted}"
    for (name, _), line in found.items():
        assert line is not None
        assert Path(name).name in line or str(Path(name).parent) in line, (name, line)
        assert "again" in line or "run the" in line or "first" in line, (name, line)
