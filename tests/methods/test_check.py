"""The command that compares our losses with a file of the authors' values."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.errors import ArtifactError
from compress.methods.check import check_file, main, report

REFERENCE = json.loads((Path(__file__).parent / "reference_values.json").read_text(encoding="utf-8"))

Vectors = dict[str, Any]


def case_of(variant: str, method: str = "", section: str = "cases") -> dict[str, Any]:
    """A copy of the first case of a variant."""
    found = next(c for c in REFERENCE[section] if c["variant"] == variant and c["method"].startswith(method))
    return copy.deepcopy(found)


def vectors(*cases: dict[str, Any], extreme: tuple[dict[str, Any], ...] = ()) -> Vectors:
    inputs = {case["input"]: REFERENCE["inputs"][case["input"]] for case in (*cases, *extreme)}
    return {
        "format": "kd-loss-vectors/1",
        "inputs": copy.deepcopy(inputs),
        "extra": dict(REFERENCE["extra"]),
        "cases": list(cases),
        "extreme_cases": list(extreme),
    }


def set_at(case: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """Change one value of a case or file in place, and return the whole."""
    *parents, last = path.split(".")
    place = case
    for parent in parents:
        place = place[parent]
    place[last] = value
    return case


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[Any], tuple[int, str]]:
    """Write a file, run the command on it, and return exit code and output."""

    def check(content: Any) -> tuple[int, str]:
        path = tmp_path / "vectors.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        code = main([str(path)])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return check


Run = Callable[[Any], tuple[int, str]]


def test_a_sound_file_passes_and_each_kind_of_case_has_a_line(run: Run) -> None:
    code, output = run(
        vectors(case_of("distillkl"), case_of("cls_kd"), extreme=(case_of("mdistiller", "DKD", "extreme_cases"),))
    )
    assert code == 0
    kinds = [line.split("  ")[1] for line in output.splitlines()[1:4]]
    assert kinds == ["KD/distillkl", "KD/cls_kd", "DKD/mdistiller extreme"]
    assert output.endswith("3 cases of 3 kinds: all as they must be\n")


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("loss", "the value in float64"),
        ("grad_l2", "the gradient in float64"),
        ("grad_abs_sum", "the gradient in float64"),
    ],
)
def test_a_number_off_by_a_billionth_is_found(run: Run, key: str, what: str) -> None:
    case = case_of("official", "WTTM")
    case[key] *= 1 + 1e-9
    code, output = run(vectors(case_of("official", "TTM"), case))
    assert code == 1
    assert f"{case['id']}: {what} is 1.0e-09 off" in output
    assert output.count("FAILED") == 1


def test_one_entry_of_a_gradient_that_is_off_is_found(run: Run) -> None:
    case = case_of("official", "DIST")
    case["grad"][2][3] += 1e-8
    code, output = run(vectors(case))
    assert code == 1
    assert f"{case['id']}: the gradient in float64" in output


def test_a_component_that_is_off_is_found(run: Run) -> None:
    case = case_of("official", "WTTM")
    case["components"]["U"][1] *= 1 + 1e-9
    code, output = run(vectors(case))
    assert code == 1
    assert "the component U is" in output


@pytest.mark.parametrize("key", ["ce", "total"])
def test_a_training_loops_sum_that_is_off_is_found(run: Run, key: str) -> None:
    case = case_of("official", "DIST")
    case["official_loop"][key] *= 1 + 1e-9
    code, output = run(vectors(case))
    assert code == 1
    assert f"the training loop's {'CE' if key == 'ce' else 'total'} is" in output


def test_an_extreme_value_that_is_off_is_found(run: Run) -> None:
    case = case_of("iclr23", section="extreme_cases")
    case["stable_value_mpmath"] *= 1 + 1e-9
    code, output = run(vectors(extreme=(case,)))
    assert code == 1
    assert f"{case['id']}: the value in float64 is 1.0e-09 off" in output


def test_a_negative_control_fails_when_we_reproduce_it(run: Run) -> None:
    case = case_of("iccv23_head", "NKD")
    case["flag"] = "DO_NOT_MATCH"
    code, output = run(vectors(case))
    assert code == 1
    assert "equals a value that it must not equal" in output


def test_a_negative_control_passes_when_we_differ(run: Run) -> None:
    code, output = run(vectors(case_of("buggy_2023-07-17_to_2023-10-10")))
    assert code == 0
    assert "differs, as it must" in output


def test_a_known_deviation_is_reported(run: Run) -> None:
    code, output = run(vectors(case_of("uskd_iccv23_head")))
    assert code == 0
    assert "known deviation" in output
    assert "our method is off by" in output


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("method", "XKD", "no counterpart of XKD/mdistiller"),
        ("variant", "newest", "no counterpart of DKD/newest"),
        ("flag", "PERHAPS", "the flag 'PERHAPS' is unknown"),
        ("hyper.margin", 2.0, "the hyper-parameters margin are unknown"),
        ("hyper", {"T": 4.0, "alpha": 1.0}, "the hyper-parameter beta is missing"),
        ("hyper.T", "four", "the hyper-parameter T is no number: 'four'"),
        ("hyper.T", -1.0, "temperature: Input should be greater than 0"),
        ("components", {"margin": 2.0}, "the component margin is unknown"),
        ("official_loop.expression", "CE * loss", "the training loop 'CE * loss' is unknown"),
        ("official_loop.expression", "0.5*CE + loss", "no weight for what the training loop takes 0.5 times"),
        ("grad", [[1.0]], "grad has shape (1, 1), the logits (4, 5)"),
    ],
)
def test_what_is_not_covered_fails(run: Run, path: str, value: object, reason: str) -> None:
    code, output = run(vectors(set_at(case_of("mdistiller", "DKD"), path, value)))
    assert code == 1
    assert f"not covered: {reason}" in output or reason in output
    assert "not covered" in output


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("input", "a4x5", "the input a4x5 has no soft_target"),
        ("hyper.top2", [[0, 1]], "top2 does not fit the input"),
        ("hyper.top2", [[0, 9]] * 4, "top2 does not fit the input"),
        ("hyper.top2", "both", "does not list two class numbers for each row"),
        ("hyper.top2", [[0, 1]] * 4, "top2 does not list the largest shares"),
        ("hyper.label", "target", "the hyper-parameter label is 'target', not 'soft_target'"),
    ],
)
def test_mixed_labels_that_do_not_fit_are_not_covered(run: Run, path: str, value: object, reason: str) -> None:
    code, output = run(vectors(set_at(case_of("iclr23_soft_label"), path, value)))
    assert code == 1
    assert "not covered" in output
    assert reason in output


@pytest.mark.parametrize(
    ("extra", "reason"),
    [("uskd_fc_9x9", "extra has no 'uskd_fc_9x9'"), ("uskd_fc_8x10", "extra 'uskd_fc_8x10' does not fit the input")],
)
def test_a_weak_branch_that_does_not_fit_is_not_covered(run: Run, extra: str, reason: str) -> None:
    code, output = run(vectors(set_at(case_of("uskd_2023-03-24"), "hyper.extra", extra)))
    assert code == 1
    assert f"not covered: {reason}" in output


def test_a_section_of_cases_that_is_unknown_is_not_covered(run: Run) -> None:
    code, output = run({**vectors(case_of("pytorch")), "robust_cases": []})
    assert code == 1
    assert "robust_cases: not covered" in output


def damaged(path: str, value: object) -> Vectors:
    """A file of one case with one wrong value."""
    return set_at(vectors(case_of("pytorch")), path, value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("not json", "Expecting value"),
        ("[]", "Input should be a valid dictionary"),
        (damaged("format", "kd-loss-vectors/2"), "format: expected 'kd-loss-vectors/1', got 'kd-loss-vectors/2'"),
        (damaged("cases", []), "holds no cases"),
        (vectors(case_of("pytorch"), case_of("pytorch")), "the id 'CE/pytorch/a4x5/000' stands for 2 cases"),
        (damaged("inputs", {}), "case 'CE/pytorch/a4x5/000' is on input 'a4x5', which is not there"),
        (damaged("inputs.a4x5.target", [0, 1, 2, 5]), "inputs.a4x5: a target is not among the 5 classes"),
        (damaged("inputs.a4x5.student_logits", [[1.0, 2.0], [1.0]]), "inputs.a4x5: expected 4 rows of 2 numbers"),
        (damaged("inputs.a4x5.student_logits", []), "inputs.a4x5: a batch needs at least one row"),
        (vectors(set_at(case_of("pytorch"), "loss", None)), "cases.0.loss: Input should be a valid number"),
        (vectors(set_at(case_of("pytorch"), "loss", float("nan"))), "cases.0.loss: Input should be a finite number"),
        (damaged("extra.w", {"feat": [[1.0]], "fc_weight": [], "fc_bias": [1.0]}), "extra.w: expected rows of one"),
    ],
)
def test_a_bad_file_is_told_in_one_line(run: Run, content: object, reason: str) -> None:
    code, output = run(content)
    assert code == 1
    assert "vectors.json is no file of loss vectors: " in output
    assert reason in output
    assert output.count("\n") == 1


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot read .*none\.json: No such file"):
        check_file(tmp_path / "none.json")


def test_feature_losses_are_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "vectors.json"
    path.write_text(json.dumps({**vectors(), "bonus": REFERENCE["bonus"]}))
    kinds = check_file(path)
    assert sum(kind.num_cases for kind in kinds) >= sum(map(len, REFERENCE["bonus"].values()))
    assert [kind.failures for kind in kinds if kind.failures] == [], report(kinds)


def test_the_module_is_a_command(tmp_path: Path) -> None:
    path = tmp_path / "vectors.json"
    path.write_text("{}")
    command = [sys.executable, "-m", "compress.methods.check", str(path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert finished.stderr.startswith(f"{path} is no file of loss vectors: format: Field required")
