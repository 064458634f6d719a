"""Our results into docs/results.json, under the recipe whose protocol they followed."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel

from compress.errors import ArtifactError, ParamsError
from compress.files import read_json, write_json
from compress.select import FLOAT32
from pipelines.layout import TEACHER, Layout
from pipelines.origin import git
from pipelines.params import load_params
from pipelines.published import AS_WRITTEN, RESULTS, Result, find_recipe, read_results, recipe_files
from pipelines.schema import AllParams

CODE_PATHS = ("compress", "pipelines", "dvc.yaml")
# Where images lie and what a run was computed on differ between machines, and seeds are counted by n.
NO_PART_OF_A_PROTOCOL = ("source.path", "source.folder", "source.download", "train.device", "train.threads", "seeds")


class Origin(NamedTuple):
    """Where and how results came about."""

    protocol: str
    command: str
    commit: str
    hardware: str
    versions: dict[str, str]


def record(root: Path, recipe: str | None, protocol: str | None) -> None:
    """Add what `select` found to docs/results.json; what is there already is not added again.

    Without `recipe` it is the one that params.yaml equals; `protocol` says in words how params.yaml differs from it.

    Raises:
        ParamsError: params.yaml is not the recipe and nothing says so, or they have no student in common.
        ArtifactError: no results, or those of other settings.
    """
    layout = Layout(root)
    params = load_params(AllParams, layout.params)
    if params.export.weights != "last":
        raise ParamsError(f"export.weights is {params.export.weights}; results are of the last epoch, set it to last")
    name = _recipe_of(params, recipe, protocol)
    known = read_results(root)
    measured = _measured(layout, params, name=name, origin=_origin(root, name, protocol or AS_WRITTEN))
    new = [result for result in measured if result not in known]
    write_json(root / RESULTS, [result.model_dump(mode="json") for result in (*known, *new)])
    print(f"{len(new)} new results of {name} in {RESULTS}; commit that file")


def _recipe_of(params: AllParams, recipe: str | None, protocol: str | None) -> str:
    if recipe is None:
        same = [name for name in recipe_files() if _difference(params, _load(name)) is None]
        if len(same) != 1:
            found = f"equals {' and '.join(same)}" if same else "equals no recipe"
            raise ParamsError(
                f"params.yaml {found}; name the recipe and, if it is not the same, say how with --protocol"
            )
        recipe = same[0]
    name = find_recipe(recipe)
    difference = _difference(params, _load(name))
    if difference is None and protocol is not None:
        raise ParamsError(f"params.yaml is {name} as it is written; leave out --protocol {protocol!r}")
    if difference is not None and protocol is None:
        raise ParamsError(
            f"params.yaml is not {name}: {difference}; run the recipe as it is, or say how yours differs, such as "
            '--protocol "short"'
        )
    return name


def _load(recipe: str) -> AllParams:
    return load_params(AllParams, recipe_files()[recipe])


def _difference(params: AllParams, recipe: AllParams) -> str | None:
    """The first setting that can change an accuracy and differs; rows that params.yaml leaves out do not count."""
    rows = set(params.students.rows)
    ours, theirs = _protocol(params, rows), _protocol(recipe, rows)
    for key in sorted({*ours, *theirs}):
        if ours.get(key) != theirs.get(key):
            return f"{key} is {ours.get(key, 'not set')}, there it is {theirs.get(key, 'not set')}"
    return None


def _protocol(params: AllParams, rows: set[str]) -> dict[str, Any]:
    dumped = params.model_dump(mode="json", include={"data", "views", "teacher"})
    students = {name: row.model_dump(mode="json") for name, row in params.students.rows.items() if name in rows}
    flat = dict(_flat({**dumped, "students": students}))
    return {key: value for key, value in flat.items() if not key.endswith(NO_PART_OF_A_PROTOCOL)}


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def _measured(layout: Layout, params: AllParams, *, name: str, origin: Origin) -> list[Result]:
    """One result for each network that recipe and params.yaml have in common."""
    summary = read_json(layout.table, made_by="select")
    ours, theirs = _networks(params), _networks(_load(name))
    results: list[Result] = []
    for row in (*([] if summary["teacher"] is None else [summary["teacher"]]), *summary["students"]):
        student = row["name"]
        if row.get("form", FLOAT32) != FLOAT32:  # published numbers are of float32 networks
            continue
        if not _is_same_kind(ours.get(student), theirs.get(student)):
            continue
        training = read_json(layout.results(student) / "training.json", made_by="distill")
        settings = ours[student].model_dump(mode="json", exclude_none=True)
        if training["settings"] != settings:
            raise ArtifactError(f"{student} was trained with other settings than params.yaml has now; run make repro")
        results.append(_result(row, name, settings, origin))
    if not results:
        raise ParamsError(f"params.yaml and {name} have nothing in common: no row of one name, network and method")
    return results


def _networks(params: AllParams) -> dict[str, BaseModel]:
    teacher = params.teacher
    return {**params.students.rows} if teacher is None else {TEACHER: teacher, **params.students.rows}


def _is_same_kind(ours: BaseModel | None, theirs: BaseModel | None) -> bool:
    """Whether network and method are the same; their settings may differ."""
    if ours is None or theirs is None:
        return False
    one, other = ours.model_dump(mode="json"), theirs.model_dump(mode="json")
    return (one["model"], one["method"]["name"]) == (other["model"], other["method"]["name"])


def _result(row: Mapping[str, Any], recipe: str, settings: Mapping[str, Any], origin: Origin) -> Result:
    num_seeds = max(row["num_seeds"], 1)  # a teacher that was loaded has none
    return Result(
        recipe=recipe,
        student=row["name"],
        method=row["method"],
        mean=round(row["accuracy_top1_mean"], 6),
        std=round(row["accuracy_top1_std"], 6) if num_seeds > 1 else None,
        n=num_seeds,
        epochs=settings["train"]["epochs"] if "train" in settings else None,
        **origin._asdict(),
    )


def _origin(root: Path, recipe: str, protocol: str) -> Origin:
    copied = f"cp pipelines/recipes/{recipe}.yaml params.yaml && make repro"
    is_changed = bool(git(root, "status", "--porcelain", "--", *CODE_PATHS))
    return Origin(
        protocol=protocol,
        command=copied if protocol == AS_WRITTEN else f"{copied}, with changes to params.yaml: {protocol}",
        commit=(git(root, "rev-parse", "HEAD") or "unknown") + ("+" if is_changed else ""),
        hardware=torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {platform.machine()}",
        versions={
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in ("torch", "onnxruntime")},
        },
    )
