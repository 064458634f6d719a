"""The champion, the front, and a reason with numbers for everybody else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from compress.errors import SelectionError
from compress.select import Candidate, Constraints, Selection, select

ROOT = Path(__file__).parents[2]


def student(
    name: str, accuracy: float, latency_ms: float, size_mb: float, *, teacher: float = 0.99, form: str = "float32"
) -> Candidate:
    return Candidate(
        name=name,
        form=form,
        accuracy_validation=accuracy,
        accuracy_test=0.5,
        latency_ms=latency_ms,
        size_bytes=round(size_mb * 1e6),
        drop=teacher - accuracy,
    )


STUDENTS = (
    student("tiny_kd", 0.90, 0.5, 0.1),
    student("small_baseline", 0.951, 1.1, 0.4),
    student("small_wttm", 0.962, 1.1, 0.4),
    student("big", 0.98, 3.2, 2.0),
)


def test_most_accurate_student_wins_where_nothing_is_constrained() -> None:
    selection = select(STUDENTS, Constraints())
    assert selection.champion == "big"
    assert selection.reason.startswith("most accurate on validation (0.98) of the 4 students")
    assert selection.front == ("big", "small_wttm", "tiny_kd")


def test_every_other_student_is_told_why_with_numbers() -> None:
    selection = select(STUDENTS, Constraints(max_latency_ms=1.2, min_accuracy=0.8))
    assert selection.champion == "small_wttm"
    assert selection.reasons == {
        "big": "slower than max_latency_ms: 3.2 > 1.2 (by 2)",
        "small_baseline": "dominated by small_wttm: accuracy 0.951 < 0.962, latency 1.1 = 1.1 ms, size 0.4 = 0.4 MB",
        "tiny_kd": "less accurate than the champion: 0.9 < 0.962",
    }


@pytest.mark.parametrize(
    ("constraints", "champion", "loser", "reason"),
    [
        ({"min_accuracy": 0.97}, "big", "small_wttm", "less accurate than min_accuracy: 0.962 < 0.97 (by 0.008)"),
        ({"max_latency_ms": 1.0}, "tiny_kd", "big", "slower than max_latency_ms: 3.2 > 1 (by 2.2)"),
        ({"max_size_mb": 0.3}, "tiny_kd", "small_wttm", "larger than max_size_mb: 0.4 > 0.3 (by 0.1)"),
        ({"max_drop": 0.02}, "big", "small_wttm", "loses more than max_drop: 0.028 > 0.02 (by 0.008)"),
    ],
)
def test_each_constraint_holds_back_by_its_own_number(
    constraints: dict[str, float], champion: str, loser: str, reason: str
) -> None:
    selection = select(STUDENTS, Constraints.model_validate(constraints))
    assert selection.champion == champion
    assert selection.reasons[loser] == reason


def test_every_failed_constraint_is_named() -> None:
    selection = select(STUDENTS, Constraints(max_latency_ms=1.2, max_size_mb=1.0))
    assert selection.reasons["big"] == (
        "slower than max_latency_ms: 3.2 > 1.2 (by 2); larger than max_size_mb: 2 > 1 (by 1)"
    )


def test_value_equal_to_its_bound_satisfies_it() -> None:
    bounds = Constraints(min_accuracy=0.98, max_latency_ms=3.2, max_size_mb=2.0, max_drop=0.99 - 0.98)
    assert select(STUDENTS, bounds).champion == "big"


def test_nobody_feasible_is_an_error_that_lists_everybody() -> None:
    with pytest.raises(SelectionError) as caught:
        select(STUDENTS[:2], Constraints(min_accuracy=0.99, max_latency_ms=1.0))
    assert str(caught.value) == (
        "no student satisfies the constraints: "
        "small_baseline: less accurate than min_accuracy: 0.951 < 0.99 (by 0.039), "
        "slower than max_latency_ms: 1.1 > 1 (by 0.1); "
        "tiny_kd: less accurate than min_accuracy: 0.9 < 0.99 (by 0.09); "
        "loosen select.* or add students"
    )


def test_students_equal_in_everything_are_both_on_the_front() -> None:
    twins = [student("b", 0.9, 1.0, 1.0), student("a", 0.9, 1.0, 1.0)]
    selection = select(twins, Constraints())
    assert set(selection.front) == {"a", "b"}
    assert selection.champion == "a"
    assert selection.reasons == {"b": "equal to the champion in accuracy, latency and size; a is first by name"}


def test_of_equally_accurate_students_the_faster_wins_then_the_smaller() -> None:
    faster = [student("slow_small", 0.9, 2.0, 0.5), student("fast_big", 0.9, 1.0, 1.0)]
    selection = select(faster, Constraints())
    assert selection.champion == "fast_big"
    assert selection.reasons == {"slow_small": "as accurate as the champion but slower: 2 > 1 ms"}
    smaller = [student("big", 0.9, 1.0, 1.0), student("small", 0.9, 1.0, 0.5)]
    assert select(smaller, Constraints()).champion == "small"


def test_numbers_that_nearly_agree_are_told_apart() -> None:
    close = [student("a", 0.95001, 1.0, 1.0), student("b", 0.95002, 2.0, 1.0)]
    assert select(close, Constraints()).reasons["a"] == "less accurate than the champion: 0.95001 < 0.95002"


def test_test_accuracy_plays_no_part() -> None:
    cheat = STUDENTS[0].model_copy(update={"accuracy_test": 1.0})
    assert select([cheat, *STUDENTS[1:]], Constraints()) == select(STUDENTS, Constraints())


def test_order_of_the_students_plays_no_part() -> None:
    assert select(STUDENTS[::-1], Constraints(max_latency_ms=2.0)) == select(STUDENTS, Constraints(max_latency_ms=2.0))


def test_student_better_than_its_teacher_loses_nothing() -> None:
    assert select([student("a", 0.9, 1.0, 1.0, teacher=0.8)], Constraints(max_drop=0.0)).champion == "a"


@pytest.mark.parametrize("seed", range(20))
def test_front_and_champion_equal_their_definitions(seed: int) -> None:
    generator = np.random.default_rng(seed)
    # Coarse values, so that ties and duplicates abound.
    students = [
        student(f"s{place}", float(a) / 8, float(latency), float(size))
        for place, (a, latency, size) in enumerate(generator.integers(1, 6, (12, 3)))
    ]
    constraints = Constraints(max_latency_ms=float(generator.integers(3, 6)))
    limit = constraints.max_latency_ms
    assert limit is not None
    feasible = [one for one in students if one.latency_ms <= limit]
    selection = select(students, constraints)

    def no_worse(a: Candidate, b: Candidate) -> bool:
        return (
            a.accuracy_validation >= b.accuracy_validation
            and a.latency_ms <= b.latency_ms
            and a.size_bytes <= b.size_bytes
        )

    expected = {one.name for one in students if not any(no_worse(o, one) and not no_worse(one, o) for o in students)}
    assert set(selection.front) == expected
    assert selection.champion in expected
    champion = next(one for one in students if one.name == selection.champion)
    assert champion in feasible
    assert champion.accuracy_validation == max(one.accuracy_validation for one in feasible)
    assert set(selection.reasons) == {one.name for one in students} - {champion.name}
    assert all(selection.reasons.values())


INT8 = "int8_static"


def test_of_the_best_students_forms_the_fastest_ships() -> None:
    forms = [student("big", 0.978, 1.5, 0.6, form=INT8), student("big", 0.976, 1.4, 0.6, form="int8_static_u8u8")]
    selection = select([*STUDENTS, *forms], Constraints())
    assert (selection.champion, selection.form) == ("big", "int8_static_u8u8")
    assert selection.reason == (
        "most accurate on validation (0.98) of the 6 students and forms that satisfy the constraints, of 6 in all; of "
        "its forms int8_static_u8u8 is the fastest: accuracy 0.976 < 0.98, latency 1.4 < 3.2 ms, size 0.6 < 2 MB"
    )
    assert selection.reasons["big"] == (
        "another form of the champion, not its fastest: accuracy 0.98 > 0.976, latency 3.2 > 1.4 ms, size 2 > 0.6 MB"
    )
    assert selection.reasons["small_wttm"] == "less accurate than the champion's float32 form: 0.962 < 0.98"


def test_forms_of_all_students_are_points_of_one_front() -> None:
    forms = [student("small_wttm", 0.9605, 0.4, 0.09, form=INT8), student("tiny_kd", 0.89, 0.45, 0.05, form=INT8)]
    selection = select([*STUDENTS, *forms], Constraints())
    assert selection.front == ("big", "small_wttm", "small_wttm/int8_static", "tiny_kd/int8_static")
    assert selection.reasons["tiny_kd"] == (
        "dominated by small_wttm/int8_static: accuracy 0.9 < 0.961, latency 0.5 > 0.4 ms, size 0.1 > 0.09 MB"
    )


def test_a_form_may_satisfy_constraints_that_its_float32_file_does_not() -> None:
    form = student("big", 0.978, 1.0, 0.6, form=INT8)
    selection = select([*STUDENTS, form], Constraints(max_latency_ms=1.2))
    assert (selection.champion, selection.form) == ("big", INT8)
    assert selection.reasons["big"] == "slower than max_latency_ms: 3.2 > 1.2 (by 2)"


def test_a_form_that_breaks_a_constraint_leaves_the_float32_file() -> None:
    form = student("big", 0.97, 1.0, 0.6, form=INT8)
    selection = select([*STUDENTS, form], Constraints(max_drop=0.015))
    assert (selection.champion, selection.form) == ("big", "float32")
    assert selection.reasons["big/int8_static"] == "loses more than max_drop: 0.02 > 0.015 (by 0.005)"


def test_a_form_that_another_student_dominates_is_not_shipped() -> None:
    forms = [student("big", 0.96, 1.2, 0.6, form=INT8)]
    selection = select([*STUDENTS, *forms], Constraints())
    assert (selection.champion, selection.form) == ("big", "float32")
    assert selection.reasons["big/int8_static"].startswith("dominated by small_wttm: ")


def test_two_files_of_one_student_and_form_are_a_wrong_call() -> None:
    form = student("big", 0.97, 1.0, 0.6, form=INT8)
    with pytest.raises(ValueError, match=r"a name of its own, got .*big/int8_static"):
        select([form, form], Constraints())


def test_selection_is_written_as_json_and_read_back() -> None:
    selection = select(STUDENTS, Constraints())
    assert Selection.model_validate_json(selection.model_dump_json()) == selection


def test_no_students_and_two_of_one_name_are_wrong_calls() -> None:
    with pytest.raises(ValueError, match=r"got \[\]"):
        select([], Constraints())
    with pytest.raises(ValueError, match="a name of its own"):
        select([STUDENTS[0], STUDENTS[0]], Constraints())


@pytest.mark.parametrize(
    "constraints", [{"min_accuracy": 95}, {"max_latency_ms": 0}, {"max_size": 1}, {"max_drop": -0.1}]
)
def test_constraint_that_cannot_be_meant_is_refused(constraints: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Constraints.model_validate(constraints)


def test_selection_loads_neither_torch_nor_onnx_nor_numpy() -> None:
    code = "import compress.select, sys; print({'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
