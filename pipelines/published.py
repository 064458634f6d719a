"""The papers' numbers beside ours: what has been reproduced, and by which command.

`pipelines.recording` adds numbers of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from rich.table import Table

from compress.errors import ArtifactError, ParamsError
from compress.settings import Fraction, PositiveInt, Settings
from pipelines.console import console
from pipelines.layout import TEACHER
from pipelines.params import read_yaml

RECIPES = Path(__file__).parent / "recipes"
PUBLISHED = RECIPES / "published.json"
RESULTS = Path("docs") / "results.json"
"""Our results, in the project's folder and in git."""
AS_WRITTEN = "recipe"
"""Protocol of a run whose params.yaml is the recipe."""
NOT_RUN = "not yet run"
COLUMNS = ("recipe", "student", "published", "ours", "published in", "our run")
NOTES = (
    "accuracy on the test split; ours: exported files of the last epoch, mean ± standard deviation over n seeds",
    "published: partly the best epoch on the test split, so a little above what the last epoch gives",
)


class Published(Settings):
    """A number in print; there may be several for one student."""

    recipe: str
    student: str
    """Row of the recipe, or `teacher`."""
    mean: Fraction
    std: Fraction | None
    """Standard deviation over runs, where it is given."""
    source: str


class Result(Settings):
    """A number of ours."""

    recipe: str
    student: str
    method: str
    mean: Fraction
    std: Fraction | None
    """Sample standard deviation over seeds; none for one seed."""
    n: PositiveInt
    """Seeds."""
    epochs: PositiveInt | None
    """None for a teacher that was loaded."""
    protocol: str
    """`recipe`, or what was different."""
    command: str
    commit: str
    """Of the code that recorded it; with a plus sign where the code had been changed since."""
    hardware: str
    """Of the machine that recorded it."""
    versions: dict[str, str] = Field(min_length=1)


E = TypeVar("E")


def run(root: Path, recipe: str | None) -> None:
    """Print the table of one recipe, or of all that have numbers.

    Raises:
        ParamsError: there is no such recipe.
        ArtifactError: a file of results is damaged.
    """
    published, results = _read(PUBLISHED, TypeAdapter(tuple[Published, ...])), read_results(root)
    numbered = {entry.recipe for entry in (*published, *results)}
    names = [name for name in recipe_files() if name in numbered] if recipe is None else [find_recipe(recipe)]
    out = console()
    out.print(table_of(names, published, results))
    for line in NOTES:
        out.print(line, style="dim")


def read_results(root: Path) -> tuple[Result, ...]:
    """Our results; none where the project has no such file yet.

    Raises:
        ArtifactError: the file is damaged.
    """
    path = root / RESULTS
    return _read(path, TypeAdapter(tuple[Result, ...])) if path.exists() else ()


def recipe_files() -> dict[str, Path]:
    """The recipes by name, such as `cifar100/vgg13_vgg8`."""
    return {path.relative_to(RECIPES).with_suffix("").as_posix(): path for path in sorted(RECIPES.rglob("*.yaml"))}


def find_recipe(name: str) -> str:
    """A recipe's full name; the last part of it is enough.

    Raises:
        ParamsError: there is no such recipe.
    """
    found = [known for known in recipe_files() if name in (known, known.rpartition("/")[2])]
    if len(found) == 1:
        return found[0]
    last_parts = {known.rpartition("/")[2]: known for known in recipe_files()}
    close = [last_parts[part] for part in difflib.get_close_matches(name.rpartition("/")[2], last_parts, n=3)]
    advice = f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(last_parts.values())}"
    raise ParamsError(f"no recipe {name!r}; {advice}")


def table_of(names: Sequence[str], published: Sequence[Published], results: Sequence[Result]) -> Table:
    """One line for each student of the recipes; further ones where it has several numbers."""
    table = Table(*COLUMNS, box=None, pad_edge=False)
    for name in names:
        shown = name
        for student in _students(recipe_files()[name]):
            papers = [entry for entry in published if (entry.recipe, entry.student) == (name, student)]
            ours = [entry for entry in results if (entry.recipe, entry.student) == (name, student)]
            for line in range(max(len(papers), len(ours), 1)):
                cells = (*_published_cells(papers, line), *_our_cells(ours, line))
                label = student if line == 0 else ""
                table.add_row(shown, label, cells[0], cells[2], cells[1], cells[3], style="" if ours else "dim")
                shown = ""
    return table


def _published_cells(papers: Sequence[Published], line: int) -> tuple[str, str]:
    if not papers and line == 0:
        return "none", ""
    return (_accuracy(papers[line]), papers[line].source) if line < len(papers) else ("", "")


def _our_cells(ours: Sequence[Result], line: int) -> tuple[str, str]:
    if not ours and line == 0:
        return NOT_RUN, ""
    if line >= len(ours):
        return "", ""
    protocol = "" if ours[line].protocol == AS_WRITTEN else f"{ours[line].protocol}; "
    return f"{_accuracy(ours[line])} (n {ours[line].n})", f"{protocol}{ours[line].commit[:8]}, {ours[line].hardware}"


def _accuracy(entry: Published | Result) -> str:
    return f"{entry.mean:.2%}" if entry.std is None else f"{100 * entry.mean:.2f} ± {entry.std:.2%}"


def _students(recipe: Path) -> list[str]:
    content = read_yaml(recipe)
    teacher = [] if content.get("teacher") is None else [TEACHER]
    return [*teacher, *(name for group in content["students"].values() for name in group)]


def _read(path: Path, entries: TypeAdapter[E]) -> E:
    try:
        return entries.validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{path} is damaged ({reason}); restore it from git") from error
