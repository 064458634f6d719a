"""docs/methods.md names every method, and every setting with its default."""

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic_core import PydanticUndefined

from compress.methods import Composed, LogitMethod, WithoutTeacher

DOCUMENT = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
METHODS: list[type[Any]] = [
    method for union in (WithoutTeacher, LogitMethod, Composed) for method in get_args(get_args(union)[0])
]
IN_THE_TEXT = ("name", "label_smoothing")
"""Settings that are not told for each method: the name itself, and one that all methods on logits share."""


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_formula_and_its_cost(method: type[Any]) -> None:
    name = method.model_fields["name"].default
    formulas, costs = (DOCUMENT.split(f"## {title}")[1].split("\n## ")[0] for title in ("Formulas", "Cost"))
    assert f"\n| `{name}` |" in formulas
    assert any(f"`{name}`" in line.split(" | ")[0] for line in costs.splitlines() if line.startswith("| `"))


@pytest.mark.parametrize(
    ("method", "setting"),
    [(method, setting) for method in METHODS for setting in method.model_fields if setting not in IN_THE_TEXT],
)
def test_every_setting_is_listed_with_its_default(method: type[Any], setting: str) -> None:
    default = method.model_fields[setting].default
    text = "required" if default is PydanticUndefined else default
    assert f"\n| `{method.model_fields['name'].default}` | `{setting}` | {text} |" in DOCUMENT


def test_no_setting_is_listed_that_is_gone() -> None:
    there = {(m.model_fields["name"].default, setting) for m in METHODS for setting in m.model_fields}
    table = DOCUMENT.split("## Settings")[1].split("\n## ")[0]
    listed = {tuple(cell.strip(" `") for cell in line.split("|")[1:3]) for line in table.splitlines() if "| `" in line}
    assert listed <= there
