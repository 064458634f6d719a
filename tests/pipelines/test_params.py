"""Bad params.yaml files: each error names the dotted key and what would be valid."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from compress.errors import ParamsError
from pipelines.params import load_params
from pipelines.schema import AllParams, schema_text

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "pipelines" / "recipes").rglob("*.yaml"))
KD_ROW: dict[str, Any] = {"model": {"source": "cnn", "channels": [4]}, "method": {"name": "kd"}}
PARAMS: dict[str, Any] = {
    "data": {"source": {"name": "digits"}},
    "teacher": {"model": {"source": "cifar", "name": "resnet20"}, "train": {"epochs": 1}},
    "students": {"distilled": {"small": KD_ROW}, "teacher_free": {}},
}


def error_after(tmp_path: Path, dotted: str, value: Any) -> str:
    params = copy.deepcopy(PARAMS)
    *parents, last = dotted.split(".")
    place = params
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params))
    with pytest.raises(ParamsError) as caught:
        load_params(AllParams, path)
    return str(caught.value)


def test_the_params_these_tests_start_from_are_good(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(PARAMS))
    assert load_params(AllParams, path).students.row("small").method.name == "kd"


@pytest.mark.parametrize(
    ("dotted", "value", "expected"),
    [
        ("students.distilled.small.method.name", "wtm", "method.name: unknown 'wtm'; did you mean 'wttm'? valid: kd"),
        ("students.distilled.small.method.temprature", 3, "unknown key; did you mean 'temperature'? valid: label"),
        ("students.distilled.small.method.temperature", -1, "temperature: input should be greater than 0, got -1"),
        ("students.distilled.small.method", {"beta": 1}, "small.method.name: missing"),
        ("students.distilled.small.model", {"source": "keras"}, "model.source: unknown 'keras'; valid: cifar, cnn"),
        ("students.distilled.small.train", {"epochs": "many"}, "small.train.epochs: input should be a valid integer"),
        ("students.distilled.small.train", {"optimizer": {"name": "sgd", "lr": 1}}, "lr: unknown key; valid:"),
        ("students.distilled.small.train", {"device": "tpu"}, "device: unknown 'tpu'; did you mean 'cpu'? valid: auto"),
        ("students.distilled.small.seeds", [1, 1], "small.seeds: every seed may appear once, got [1, 1]"),
        ("students.distilled.Big-One", KD_ROW, "'Big-One' cannot name a student; use lower-case letters"),
        ("students.distilled.teacher", KD_ROW, "'teacher' is taken"),
        ("students.teacher_free.small", {**KD_ROW, "method": {"name": "cross_entropy"}}, "'small' is taken"),
        ("students.distilled", {}, "students: no students; add a row"),
        ("students.distilled", None, "students.distilled: input should be a valid dictionary, got None"),
        ("teacher.model.name", "resnet21", "teacher.model.name: unknown 'resnet21'; did you mean"),
        ("teacher.min_accuracy", 1.5, "teacher.min_accuracy: input should be less than or equal to 1, got 1.5"),
        ("data.source.name", "mnist", "data.source.name: unknown 'mnist'; valid: digits, cifar10"),
        ("data.source", {"name": "image_folder"}, "data.source.path: missing; add it"),
        ("data.validation_fraction", float("nan"), "data.validation_fraction: input should be a finite number"),
        ("views.augmentation", {"name": "pad_crop_flip", "pad": -1}, "views.augmentation.pad: input should be greater"),
        ("select.max_latency", 3, "select.max_latency: unknown key; did you mean 'max_latency_ms'?"),
        ("studens", {}, "studens: unknown section; did you mean 'students'? valid: data, views, teacher"),
    ],
)  # fmt: skip
def test_an_error_names_the_key_and_the_valid_choices(tmp_path: Path, dotted: str, value: Any, expected: str) -> None:
    message = error_after(tmp_path, dotted, value)
    assert message.startswith("params.yaml: ")
    assert expected in message
    assert "\n" not in message


def test_a_value_shared_by_an_anchor_is_complained_about_once(tmp_path: Path) -> None:
    shared = {"epochs": 0}
    rows = {name: {**KD_ROW, "train": shared} for name in ("a", "b", "c")}
    message = error_after(tmp_path, "students.distilled", rows)
    assert message.count("got 0") == 1
    assert "(and 2 more)" in message


def test_anchors_may_stand_under_keys_that_start_with_x(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({"x-shared": {"anything": 1}, **PARAMS}))
    load_params(AllParams, path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "params.yaml is not valid YAML"),
        ("- a\n- b", "expected sections (data, views"),
        ("", "got NoneType"),
        ("!!python/object/apply:os.system [echo]", "is not valid YAML"),
    ],
)
def test_files_that_are_no_params_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError) as caught:
        load_params(AllParams, path)
    assert expected in str(caught.value)


def test_a_missing_file_says_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="copy a file from pipelines/recipes/"):
        load_params(AllParams, tmp_path / "params.yaml")


def test_an_unknown_student_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(PARAMS))
    with pytest.raises(ParamsError, match=r"no student 'smal' in params\.yaml; there are small"):
        load_params(AllParams, path).students.row("smal")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(recipe: Path) -> None:
    load_params(AllParams, recipe)


def test_the_default_params_are_the_digits_recipe() -> None:
    assert (ROOT / "params.yaml").read_bytes() == (ROOT / "pipelines" / "recipes" / "digits.yaml").read_bytes()


def test_the_schema_in_the_repository_is_current() -> None:
    assert (ROOT / "params.schema.json").read_text(encoding="utf-8") == schema_text()


def test_every_setting_has_a_type_in_the_schema_and_most_have_words() -> None:
    definitions = json.loads(schema_text())["$defs"]
    assert "WTTM" in definitions
    assert "power transform" in definitions["WTTM"]["properties"]["gamma"]["description"]


# Files that would take all memory, or all day.


def test_aliases_of_aliases_are_counted_and_not_unfolded(tmp_path: Path) -> None:
    laughs = "\n".join(f"x-{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))
    merges = "\n".join(f"x-{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}], k{n}: 1}}" for n in range(1, 40))
    for start, rest in (("x-0: &a0 [lol]", laughs), ("x-0: &a0 {k: 1}", merges)):
        (tmp_path / "params.yaml").write_text(f"{start}\n{rest}\n")
        with pytest.raises(ParamsError, match=r"params\.yaml unfolds to more than 100000 values"):
            load_params(AllParams, tmp_path / "params.yaml")


def test_value_that_contains_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("students: &a {distilled: *a}\n")
    with pytest.raises(ParamsError, match="unfolds to more than"):
        load_params(AllParams, tmp_path / "params.yaml")


def test_huge_and_deep_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("# " + "x" * 1_000_000)
    with pytest.raises(ParamsError, match="at most 1000000 are read"):
        load_params(AllParams, tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("[" * 5000)
    with pytest.raises(ParamsError, match="nested too deeply"):
        load_params(AllParams, tmp_path / "params.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "data: !!python/object/apply:os.system ['touch pwned']",
        "data: !!python/name:os.system",
        "data: !<tag:yaml.org,2002:python/object/new:subprocess.Popen> [[touch, pwned]]",
        "data: 2026-99-99",
        "data: !!int x",
        "data: !!timestamp x",
        "data: !!binary x",
        "? [a]\n: b",
        "a: b: c",
        "\x00",
        "data: *nowhere",
    ],
)
def test_tags_and_values_that_are_none_are_one_line(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match=r"params\.yaml is not valid YAML"):
        load_params(AllParams, tmp_path / "params.yaml")
    assert not (tmp_path / "pwned").exists()
