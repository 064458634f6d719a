"""Runtimes that need no network, on the forms of a small trained student; the others: `python -m tests.clients`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.clients.drive import Result, Verdict, python_client
from tests.clients.students import ANY_SIZE, FLOAT32, FLOAT_ENTRY, QUANTIZERS, write_student


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clients") / "convolutions"
    write_student(folder, "convolutions", num_epochs=2)
    return folder


def answers(program: str, package: str, student: Path) -> Result:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    return python_client(program, student)


def passing(result: Result) -> set[str]:
    return {form for form, verdict in result.verdicts.items() if verdict.passes}


def test_onnxruntime_takes_every_form(student: Path) -> None:
    result = answers("onnxruntime", "onnxruntime", student)
    assert passing(result) == {FLOAT32, FLOAT_ENTRY, ANY_SIZE, *QUANTIZERS, "int8_static_any_size"}
    assert result.verdicts[FLOAT32].from_golden == 0.0
    assert result.verdicts["int8_static"].from_golden > 0, "it is another file"


def test_openvino_takes_every_form_but_those_of_any_size(student: Path) -> None:
    result = answers("openvino", "openvino", student)
    assert passing(result) == {FLOAT32, FLOAT_ENTRY, *QUANTIZERS}


def test_opencv_takes_float_forms_and_packed_weights(student: Path) -> None:
    result = answers("opencv", "cv2", student)
    assert {FLOAT32, FLOAT_ENTRY, "float16", "weight_only_int8", "weight_only_float16"} <= passing(result)
    assert ANY_SIZE not in passing(result)


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (Verdict(FLOAT32, None, 0.0, 0.0), "yes"),
        (Verdict("float16", None, 1e-3, 4e-4), "yes (4e-04)"),
        (Verdict(FLOAT32, None, 0.3, 0.3), "**wrong** (0.3)"),
        (Verdict("int8_static", None, 0.05, 0.4), "**wrong** (0.4)"),
        (Verdict(FLOAT32, None, float("inf"), 0.0), "**wrong** (inf)"),
        (Verdict(FLOAT32, "no such operator"), "**refused**"),
        (Verdict(FLOAT32, "the process ended"), "**crashed**"),
    ],
)
def test_verdict_in_words(verdict: Verdict, words: str) -> None:
    assert verdict.in_words == words
