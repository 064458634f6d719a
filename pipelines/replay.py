"""Command replay: train a network again from its card, and compare the weights bit for bit.

It is trained in a folder of its own, by the same stages. What its card names and the project still has (prepared data,
teacher, stored answers, other students) is used as it is; what is missing is made there first.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from compress.artifact import ModelCard, load_card
from compress.data.prepared import load_prepared
from compress.errors import ArtifactError, ParamsError
from compress.models.checkpoint import CARD_FILE
from compress.teacher_logits import read_manifest
from pipelines import distill, prepare, teacher, teacher_logits
from pipelines.absence import is_absent
from pipelines.layout import QUANTIZATION_AWARE, TEACHER, Layout
from pipelines.lineage import name_of
from pipelines.params import read_yaml
from pipelines.settings import GROUPS, StudentsSettings

REPLAYED = "replayed"
"""Name of a student whose folder does not tell one."""


class Replayed(NamedTuple):
    """A network that was trained twice."""

    expected: str
    """SHA-256 of the weights that the card speaks of."""
    found: str
    """Of those that were trained now."""
    differences: tuple[str, ...]
    """What was not as it was then."""


def run(root: Path, path: Path) -> None:
    """Train again and say whether the weights are the same; exit code 1 where they are not.

    Raises:
        ArtifactError: there is no card, or the network was not trained by this project.
    """
    folder = path.parent if path.name == CARD_FILE else path
    outcome = replay(root, folder)
    for difference in outcome.differences:
        print(f"replay: {difference}")
    if outcome.found == outcome.expected:
        print(f"replay: the same weights, SHA-256 {outcome.found}")
        return
    print(f"replay: other weights, SHA-256 {outcome.found}; the card says {outcome.expected}")
    if not outcome.differences:
        print("replay: nothing that the card records was different; it may be the libraries below torch")
    sys.exit(1)


def replay(root: Path, folder: Path) -> Replayed:
    """The same without printing."""
    card = load_card(folder)
    if card.origin is None or card.training is None:
        raise ArtifactError(
            f"{folder / CARD_FILE} does not say how to train it: its weights were loaded, or an older version wrote "
            "it; name a network that was trained here"
        )
    name = name_of(folder)
    name = name if name in _row_names(Layout(root)) or name == TEACHER else REPLAYED
    scratch = Layout(root / ".work" / "replay" / card.fingerprint[:16])
    shutil.rmtree(scratch.root, ignore_errors=True)
    scratch.root.mkdir(parents=True)
    with _untracked():
        found = _train(Layout(root), scratch, card, name)
    which = folder.name if folder.name in ("last", "best", QUANTIZATION_AWARE) else _which(scratch, card, name)
    trained = load_card(scratch.teacher if name == TEACHER else scratch.trained(name, _seed(card), which))
    differences = (*found, *_differences(card, trained))
    shutil.rmtree(scratch.root)
    return Replayed(card.saved_sha256, trained.saved_sha256, differences)


def _train(project: Layout, scratch: Layout, card: ModelCard, name: str) -> list[str]:
    """Run the stages in the scratch folder, those whose result the project has left out; what had to be made again."""
    _write_params(project, scratch, card, name)
    notes = list(_link_inputs(project, scratch, card, name))
    if not scratch.prepared.exists():
        notes.append("the prepared data was made again")
        prepare.run(scratch.root)
    if name == TEACHER:
        teacher.run(scratch.root)
        return notes
    if "teacher_sha256" in card.lineage and not scratch.teacher.exists():
        notes.append("the teacher was made again")
        teacher.run(scratch.root)
    if "teacher_sha256" in card.lineage and not scratch.teacher_logits.exists():
        if not is_absent(scratch.teacher):
            notes.append("the teacher's logits were made again")
        teacher_logits.run(scratch.root)
    distill.run(scratch.root, name)
    return notes


def _link_inputs(project: Layout, scratch: Layout, card: ModelCard, name: str) -> Iterator[str]:
    """Links to what the project has and the card names; what the project has otherwise is said and not used."""
    stated = card.lineage
    here = {
        "data/prepared": (stated.get("data_fingerprint"), _prepared(project)),
        "models/teacher": (_of_teacher(project, stated), _teacher(project)),
        "data/teacher_logits": (stated.get("teacher_logits_sha256") or _any_store(stated, project), _store(project)),
    }
    for place, (wanted, found) in here.items():
        if found is None or (name == TEACHER and place != "data/prepared"):
            continue
        if wanted == found:
            _link(project.root / place, scratch.root / place)
        elif wanted is not None:
            yield f"{place} is another one in this project ({found[:12]}, the card says {wanted[:12]})"
    for other in sorted(project.model("*").parent.glob("*")):
        if other.name not in (name, TEACHER):
            _link(other, scratch.model(other.name))


def _link(source: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(source.resolve(), target_is_directory=True)


def _prepared(layout: Layout) -> str | None:
    return load_prepared(layout.prepared).manifest.fingerprint if layout.prepared.is_dir() else None


def _teacher(layout: Layout) -> str | None:
    if (layout.teacher / CARD_FILE).is_file():
        return load_card(layout.teacher).saved_sha256
    return "none" if layout.teacher.exists() and is_absent(layout.teacher) else None


def _store(layout: Layout) -> str | None:
    if not layout.teacher_logits.is_dir():
        return None
    return "none" if is_absent(layout.teacher_logits) else read_manifest(layout.teacher_logits).sha256


def _of_teacher(project: Layout, stated: Mapping[str, str]) -> str | None:
    """Which teacher the scratch folder needs: the student's own, or the project's where another student taught it."""
    wanted = stated.get("teacher_sha256")
    return _teacher(project) if wanted is not None and wanted in _taught_by_students(project) else wanted


def _any_store(stated: Mapping[str, str], project: Layout) -> str | None:
    """A student that asked its teacher while it trained reads from the store only how exactly to ask."""
    return _store(project) if "teacher_sha256" in stated else None


def _taught_by_students(project: Layout) -> dict[str, str]:
    """Names of students by the SHA-256 of their weights."""
    cards = project.model("*").parent.glob(f"*/seed_*/best/{CARD_FILE}")
    return {load_card(card.parent).saved_sha256: card.parts[-4] for card in cards}


def _write_params(project: Layout, scratch: Layout, card: ModelCard, name: str) -> None:
    """params.yaml of the scratch folder: the project's, with the card's recipe in its place."""
    assert card.origin is not None
    recipe = card.origin["recipe"]
    assert isinstance(recipe, dict)
    params = read_yaml(project.params)
    params |= {"data": recipe["data"], "views": recipe["views"]}
    row = {key: recipe[key] for key in ("model", "method", "train", QUANTIZATION_AWARE) if key in recipe}
    if name == TEACHER:
        minimum = {"min_accuracy": 0.0}
        params["teacher"] = {**(params.get("teacher") or {}), **row, **minimum, "seed": recipe["seed"]}
    else:
        params["students"] = _students(project, params["students"], card, name, row | {"seeds": [recipe["seed"]]})
    scratch.params.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def _students(
    project: Layout, rows: Mapping[str, Any], card: ModelCard, name: str, row: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """The project's rows with the replayed one in the group where it was."""
    others = {group: {key: of for key, of in (rows.get(group) or {}).items() if key != name} for group in GROUPS}
    teacher_sha256 = card.lineage.get("teacher_sha256")
    if teacher_sha256 is None:
        groups = ("teacher_free",)
    elif (student := _taught_by_students(project).get(teacher_sha256)) is not None:
        groups, row = ("self_taught",), row | {"teacher": student}
    else:
        groups = ("distilled", "composed")
    for group in groups:
        students = {**others, group: {**others[group], name: row}}
        try:
            StudentsSettings.model_validate(students)
        except ValidationError:
            continue
        return students
    raise ParamsError(f"the recipe in the card of {name} is none that this version can train; check out its commit")


def _differences(card: ModelCard, trained: ModelCard) -> Iterator[str]:
    """What the new card says otherwise, of all that may decide weights."""
    then, now = card.origin or {}, trained.origin or {}
    for key in sorted(card.lineage.keys() | trained.lineage.keys()):
        if card.lineage.get(key) != trained.lineage.get(key):
            yield f"{key} was {card.lineage.get(key)}, is {trained.lineage.get(key)}"
    for key in ("training_code_sha256", "commit", "commit_changed", "lock_sha256"):
        if then.get(key) != now.get(key):
            yield f"{key} was {then.get(key)}, is {now.get(key)}"
    for group in ("versions", "machine"):
        before, after = then.get(group), now.get(group)
        assert isinstance(before, dict)
        assert isinstance(after, dict)
        for key in before:
            if before[key] != after.get(key):
                yield f"{key} was {before[key]}, is {after.get(key)}"


def _which(scratch: Layout, card: ModelCard, name: str) -> str:
    """Which network of a training a card is of that stands elsewhere."""
    if name == TEACHER:
        return "last"
    if card.rounding is not None:
        return QUANTIZATION_AWARE
    best = load_card(scratch.trained(name, _seed(card), "best"))
    return "best" if best.epoch == card.epoch else "last"


def _seed(card: ModelCard) -> int:
    assert card.seed is not None
    return card.seed


def _row_names(layout: Layout) -> set[str]:
    rows = read_yaml(layout.params).get("students") or {}
    return {name for group in GROUPS for name in (rows.get(group) or {})}


@contextmanager
def _untracked() -> Generator[None]:
    """A replay is no new result: it leaves nothing in the tracker."""
    before = os.environ.get("COMPRESS_TRACKING")
    os.environ["COMPRESS_TRACKING"] = "off"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COMPRESS_TRACKING"]
        else:
            os.environ["COMPRESS_TRACKING"] = before
