"""What the documents show can be run."""

import re
from pathlib import Path

import pytest
import yaml

from pipelines.params import load_params
from pipelines.schema import AllParams

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    """(document, text) of every fenced block in a language."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(path.name, text) for path in DOCUMENTS for text in pattern.findall(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("document", "code"), blocks("python"))
def test_python_snippets_run(document: str, code: str) -> None:
    exec(compile(code, document, "exec"), {})


def test_the_params_in_the_readme_are_valid(tmp_path: Path) -> None:
    (text,) = [text for document, text in blocks("yaml") if document == "README.md"]
    (tmp_path / "params.yaml").write_text(text)
    assert load_params(AllParams, tmp_path / "params.yaml").students.row("small_wttm").seeds == (0, 1, 2)


@pytest.mark.parametrize(
    "line", [line for _, text in blocks("yaml") for line in text.splitlines() if "teacher: {" in line]
)
def test_teacher_lines_in_the_docs_are_valid(line: str, tmp_path: Path) -> None:
    rows = {"alone": {"model": {"source": "cnn"}, "method": {"name": "cross_entropy"}}}
    students = {"distilled": {}, "teacher_free": rows}
    params = {"data": {"source": {"name": "digits"}}, "students": students, **yaml.safe_load(line)}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert load_params(AllParams, tmp_path / "params.yaml").teacher.model.brings_weights


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target
