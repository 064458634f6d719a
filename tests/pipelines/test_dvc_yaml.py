"""dvc.yaml says what the code does: every module that can change a stage's result is among its dependencies."""

import re
from pathlib import Path
from typing import Any, get_args

import grimp
import pytest
import yaml

from compress.data import DataSource
from compress.methods import Composed, LogitMethod, WithoutTeacher
from compress.models import ModelSource
from compress.settings import Settings
from pipelines.code import CODE
from pipelines.distill import DistillParams
from pipelines.evaluate import EvaluateParams
from pipelines.export import ExportParams
from pipelines.layout import Layout
from pipelines.prepare import PrepareParams
from pipelines.prepare_names import PrepareNamesParams
from pipelines.select import SelectParams
from pipelines.teacher import TeacherParams
from pipelines.teacher_logits import TeacherLogitsParams

ROOT = Path(__file__).parents[2]
STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PARAMS: dict[str, type[Settings]] = {
    "prepare": PrepareParams,
    "prepare_names": PrepareNamesParams,
    "teacher": TeacherParams,
    "teacher_logits": TeacherLogitsParams,
    "distill": DistillParams,
    "distill_composed": DistillParams,
    "distill_free": DistillParams,
    "distill_self": DistillParams,
    "export_teacher": ExportParams,
    "export": ExportParams,
    "export_composed": ExportParams,
    "export_free": ExportParams,
    "export_self": ExportParams,
    "evaluate_teacher": EvaluateParams,
    "evaluate": EvaluateParams,
    "evaluate_composed": EvaluateParams,
    "evaluate_free": EvaluateParams,
    "evaluate_self": EvaluateParams,
    "select": SelectParams,
}

CANNOT_CHANGE_A_RESULT = {
    "compress",  # names only, resolved on use
    "compress.errors",
    "compress.settings",
    "compress.types",
    "compress.files",
    "pipelines",
    "pipelines.absence",  # the same for every pipeline without a teacher
    "pipelines.console",
    "pipelines.layout",  # a moved path changes dvc.yaml itself
    "pipelines.params",
    "pipelines.process",
    "pipelines.progress",
    "pipelines.tracking",
}
"""Words, paths and tracking: a better message must not retrain anything."""
SHELL = CANNOT_CHANGE_A_RESULT - {"compress", "pipelines"}


def modules_of(union: Any) -> set[str]:
    return {member.__module__ for member in get_args(get_args(union)[0])}


REGISTRIES = {
    "compress.methods": modules_of(LogitMethod)
    | modules_of(Composed)
    | modules_of(WithoutTeacher)
    | {"compress.methods.logit_methods", "compress.methods.feature_methods"},
    "compress.models": modules_of(ModelSource),
    "compress.data": modules_of(DataSource),
}
"""A registry imports all its members, a row uses one: rows name it in a dependency such as methods/${...name}.py."""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("compress", "pipelines")


def stage_of(name: str) -> dict[str, Any]:
    return STAGES[name].get("do", STAGES[name])


def needed(graph: grimp.ImportGraph, module: str) -> set[str]:
    """Modules that can change what a module computes; behind a registry only what is not one of its members."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        current = waiting.pop()
        is_shell = any(current == name or current.startswith(f"{name}.") for name in SHELL)
        if current in found or current in ("compress", "pipelines") or is_shell:
            continue
        found.add(current)
        waiting += graph.find_modules_directly_imported_by(current) - REGISTRIES.get(current, set())
    return found - {"compress.methods", "compress.models"}  # lists of names: a new method invalidates nothing


def file_of(module: str) -> str:
    path = module.replace(".", "/")
    return f"{path}/__init__.py" if (ROOT / path).is_dir() else f"{path}.py"


def declared(name: str) -> set[str]:
    return {dep for dep in stage_of(name)["deps"] if dep.endswith(".py")}


@pytest.mark.parametrize("name", STAGES)
def test_every_module_that_can_change_the_result_is_a_dependency(name: str, graph: grimp.ImportGraph) -> None:
    module = f"pipelines.{re.sub('_(composed|free|self|teacher)$', '', name)}"
    files = {file_of(each) for each in needed(graph, module)}
    if name == "prepare":
        files |= {file_of(each) for source in REGISTRIES["compress.data"] for each in needed(graph, source)}
    if name == "teacher_logits" or not name.startswith(("prepare", "evaluate", "select")):
        # What the members share; the member itself is named through the row, or is in the artifact's hash.
        shared = {each for source in REGISTRIES["compress.models"] for each in needed(graph, source)}
        files |= {file_of(each) for each in shared - REGISTRIES["compress.models"]}
    if name == "teacher":
        # All of them by name: where params.yaml says teacher: null, ${teacher...} would lead nowhere.
        files |= {file_of(module) for module in modules_of(WithoutTeacher) | modules_of(ModelSource)}
    if name == "distill_composed":  # names its whole folder
        files = {file for file in files if not file.startswith("compress/methods/")}
    constant = {dep for dep in declared(name) if "${" not in dep}
    assert constant == files, f"missing {sorted(files - constant)}, superfluous {sorted(constant - files)}"


@pytest.mark.parametrize("name", STAGES)
def test_params_are_the_sections_that_the_stage_reads(name: str) -> None:
    sections = {param.split(".")[0] for param in stage_of(name).get("params", [])}
    assert sections == set(PARAMS[name].model_fields)


@pytest.mark.parametrize("name", ["distill", "distill_free", "distill_self"])
def test_a_student_depends_on_its_own_method_and_network_only(name: str) -> None:
    assert "compress/methods/${item.method.name}.py" in declared(name)
    assert "compress/models/${item.model.source}.py" in declared(name)
    assert not any(re.fullmatch(r"compress/methods/(?!base)\w+\.py", dep) for dep in declared(name))


def test_a_new_teacher_does_not_retrain_teacher_free_students() -> None:
    assert not any("teacher" in dep and not dep.endswith(".py") for dep in stage_of("distill_free")["deps"])
    assert {"models/teacher", "data/teacher_logits"} <= set(stage_of("distill")["deps"])


@pytest.mark.parametrize("name", STAGES)
def test_commands_run_the_checkouts_own_code(name: str) -> None:
    assert stage_of(name)["cmd"].startswith("exec python -m pipelines ")


@pytest.mark.parametrize("name", STAGES)
def test_nothing_of_params_yaml_reaches_the_shell(name: str) -> None:
    assert "${" not in stage_of(name)["cmd"]


def test_no_training_starts_before_the_names_are_checked() -> None:
    """DVC would empty the folder that a name leads to."""
    for name in STAGES:
        leads_elsewhere = any("${key}" in output for output in outputs(name))
        assert leads_elsewhere == ("foreach" in STAGES[name]), name
        if name.startswith("distill"):
            assert str(Layout(Path()).student_names) in stage_of(name)["deps"]


def outputs(name: str) -> set[str]:
    stage = stage_of(name)
    entries = [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


def test_paths_are_those_of_the_layout() -> None:
    layout = Layout(Path())
    expected = {
        "prepare": {layout.prepared},
        "prepare_names": {layout.student_names},
        "teacher_logits": {layout.teacher_logits},
        "distill": {layout.model("${key}"), layout.run("${key}")},
        "export": {layout.exported("${key}")},
        "select": {layout.table, layout.champion, layout.deploy},
    }
    for name, paths in expected.items():
        assert {str(path) for path in paths} <= outputs(name), name


def test_nothing_in_git_is_also_kept_by_dvc_and_nothing_is_lost() -> None:
    """A cached output must be ignored by git through a static rule, an uncached one must not."""
    ignored = [line for line in (ROOT / ".gitignore").read_text().splitlines() if line.startswith("/")]
    for name in STAGES:
        stage = stage_of(name)
        for entry in [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]:
            path, options = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
            is_ignored = any(_matches(pattern, path) for pattern in ignored)
            assert is_ignored == options.get("cache", True), path


def _matches(pattern: str, path: str) -> bool:
    if pattern.endswith("/"):
        return f"{path}/".startswith(pattern[1:])
    return re.fullmatch(re.escape(pattern[1:]).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*"), path) is not None


def test_checkpoints_belong_to_all_code_that_decides_what_training_computes(graph: grimp.ImportGraph) -> None:
    """Files that only read, check or describe what is on disk are covered by the hashes of what they read."""
    readers = {"data.manifest", "data.source", "fingerprint", "logit_journal", "logit_store"}
    modules = {name.removeprefix("compress.") for name in needed(graph, "compress.train")}
    assert {name for name in modules if not name.startswith("models.")} - readers == set(CODE)
