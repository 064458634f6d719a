"""Published numbers beside ours: the data file is consistent, and ours get in only under their true protocol."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from compress.errors import ArtifactError, ParamsError
from pipelines.layout import TEACHER
from pipelines.params import read_yaml
from pipelines.published import PUBLISHED, RESULTS, Published, find_recipe, read_results, recipe_files, run
from pipelines.recording import record
from tests.pipelines.project import write_params

ROOT = Path(__file__).parents[2]
ENTRIES = TypeAdapter(tuple[Published, ...]).validate_json(PUBLISHED.read_bytes())
DIGITS = recipe_files()["digits"]


@cache
def rows_of(recipe: str) -> set[str]:
    content = read_yaml(recipe_files()[recipe])
    teacher = set() if content["teacher"] is None else {TEACHER}
    return teacher | {name for group in content["students"].values() for name in group}


def test_every_published_number_belongs_to_a_row_of_a_recipe() -> None:
    for entry in ENTRIES:
        assert entry.student in rows_of(entry.recipe), entry


def test_every_published_number_stands_in_the_header_of_its_recipe() -> None:
    headers = {name: path.read_text(encoding="utf-8").partition("\ndata:")[0] for name, path in recipe_files().items()}
    elsewhere = [entry for entry in ENTRIES if f"{100 * entry.mean:.2f}" not in headers[entry.recipe]]
    # Second opinions on one row, from other papers, are in the table only.
    assert all(any(other.student == entry.student for other in ENTRIES if other != entry) for entry in elsewhere)
    assert len(elsewhere) < 12


def test_the_table_has_all_pairs_and_nothing_of_ours_that_was_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    run(ROOT, None)
    printed = capsys.readouterr().out
    assert "cifar100/wrn_40_2_shufflev1" in printed
    assert "76.65 ± 0.33%" in printed
    assert json.loads((ROOT / RESULTS).read_text(encoding="utf-8")) or "(n " not in printed


def test_one_recipe_is_shown_under_the_last_part_of_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    run(ROOT, "resnet34_resnet18")
    printed = capsys.readouterr().out
    assert "72.19%" in printed
    assert "not yet run" in printed
    assert "cifar100/" not in printed


def test_an_unknown_recipe_is_answered_with_close_ones() -> None:
    with pytest.raises(ParamsError, match="no recipe 'vgg13_vgg9'; did you mean cifar100/vgg13_vgg8"):
        find_recipe("vgg13_vgg9")


def test_a_damaged_results_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / RESULTS).write_text('[{"recipe": "digits"}]')
    with pytest.raises(ArtifactError, match=r"results\.json is damaged"):
        run(tmp_path, None)


def finished(root: Path, params: dict[str, Any]) -> Path:
    """A project whose students of `params` are trained and selected, with made-up accuracies."""
    root.mkdir(exist_ok=True)
    write_params(root, params)
    from pipelines.params import load_params
    from pipelines.schema import AllParams

    settings = load_params(AllParams, root / "params.yaml")
    assert settings.teacher is not None
    rows: list[dict[str, Any]] = []
    for name, network in {TEACHER: settings.teacher, **settings.students.rows}.items():
        dumped = network.model_dump(mode="json", exclude_none=True)
        (root / "results" / name).mkdir(parents=True, exist_ok=True)
        (root / "results" / name / "training.json").write_text(json.dumps({"settings": dumped}))
        accuracy = {"accuracy_top1_mean": 0.9, "accuracy_top1_std": 0.01 if name != TEACHER else 0.0}
        num_seeds = len(dumped.get("seeds", [0]))
        rows.append({"name": name, "method": dumped["method"]["name"], "num_seeds": num_seeds, **accuracy})
    (root / "metrics").mkdir(exist_ok=True)
    (root / "metrics" / "students.json").write_text(json.dumps({"teacher": rows[0], "students": rows[1:]}))
    return root


def digits() -> dict[str, Any]:
    return read_yaml(DIGITS)


def test_results_of_an_unchanged_recipe_are_recorded_under_its_name(tmp_path: Path) -> None:
    project = finished(tmp_path / "project", digits())
    shutil.copy(DIGITS, project / "params.yaml")
    record(project, None, None)
    results = read_results(project)
    assert {result.student for result in results} == rows_of("digits")
    kd = next(result for result in results if result.student == "tiny_kd")
    assert (kd.recipe, kd.protocol, kd.method, kd.mean, kd.std, kd.n, kd.epochs) == (
        "digits", "recipe", "kd", 0.9, 0.01, 3, 15,
    )  # fmt: skip
    assert kd.command.endswith("make repro")
    assert kd.versions["torch"]
    teacher = next(result for result in results if result.student == TEACHER)
    assert (teacher.n, teacher.std) == (1, None)


def test_the_same_results_are_recorded_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = finished(tmp_path / "project", digits())
    record(project, None, None)
    before = read_results(project)
    record(project, "digits", None)
    assert read_results(project) == before
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 new results of digits")


def test_recorded_results_are_shown_with_their_protocol(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = digits()
    params["teacher"]["train"]["epochs"] = 2
    record(finished(tmp_path / "project", params), "digits", "teacher of 2 epochs")
    run(tmp_path / "project", "digits")
    printed = capsys.readouterr().out
    assert "90.00 ± 1.00% (n 3)" in printed
    assert "teacher of 2 epochs; " in printed


def without_students(params: dict[str, Any]) -> None:
    del params["students"]["teacher_free"]
    del params["students"]["distilled"]["tiny_nkd"]


def other_paths(params: dict[str, Any]) -> None:
    for row in params["students"]["distilled"].values():
        row["seeds"] = [7]
        row["train"] = {**row["train"], "threads": 2}


@pytest.mark.parametrize("change", [without_students, other_paths])
def test_fewer_students_other_seeds_and_threads_are_still_the_recipe(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    params = digits()
    change(params)
    project = finished(tmp_path / "project", params)
    record(project, None, None)
    assert {result.protocol for result in read_results(project)} == {"recipe"}


def test_other_settings_are_refused_unless_said(tmp_path: Path) -> None:
    params = digits()
    params["views"]["views_per_image"] = 3
    project = finished(tmp_path / "project", params)
    with pytest.raises(ParamsError, match=r"params\.yaml is not digits: views\.views_per_image is 3, there it is 9"):
        record(project, "digits", None)
    with pytest.raises(ParamsError, match=r"equals no recipe; name the recipe and"):
        record(project, None, "three views")
    record(project, "digits", "three views")
    assert {result.protocol for result in read_results(project)} == {"three views"}


def test_a_protocol_for_the_recipe_as_it_is_written_is_refused(tmp_path: Path) -> None:
    project = finished(tmp_path / "project", digits())
    with pytest.raises(ParamsError, match="leave out --protocol 'short'"):
        record(project, "digits", "short")


def test_results_of_older_settings_are_refused(tmp_path: Path) -> None:
    project = finished(tmp_path / "project", digits())
    training = project / "results" / "tiny_kd" / "training.json"
    training.write_text(training.read_text().replace('"temperature": 4.0', '"temperature": 2.0'))
    with pytest.raises(ArtifactError, match="tiny_kd was trained with other settings"):
        record(project, None, None)
    assert not (project / RESULTS).exists()


def test_results_of_the_best_epoch_are_refused(tmp_path: Path) -> None:
    params = digits()
    params["export"]["weights"] = "best"
    with pytest.raises(ParamsError, match="results are of the last epoch"):
        record(finished(tmp_path / "project", params), "digits", "best")


def test_a_recipe_without_a_common_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="have nothing in common"):
        record(finished(tmp_path / "project", digits()), "vgg13_vgg8", "digits instead")


def test_a_project_without_results_says_which_stage_to_run(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(digits()))
    with pytest.raises(ArtifactError, match="run the select stage first"):
        record(tmp_path, "digits", None)
