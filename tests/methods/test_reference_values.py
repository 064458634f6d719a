"""Each method equals the authors' own code, or a 60-digit evaluation of the formula where that code overflows.

The counterparts and tolerances are those of `python -m compress.methods.check`, whose own tests show that it can fail.
"""

import json
from pathlib import Path

import pytest

from compress.methods.vectors.file import Case, ExtremeCase, read_vector_file
from compress.methods.vectors.measure import measure, measure_extreme

HERE = Path(__file__).parent / "reference_values.json"
PUBLISHED = Path(__file__).parents[3] / "shared" / "reference" / "loss_vectors.json"
REFERENCE = read_vector_file(HERE)


@pytest.mark.parametrize("case", REFERENCE.cases, ids=lambda case: case.id)
def test_values_and_gradients_equal_those_of_the_authors_code(case: Case) -> None:
    assert measure(case, REFERENCE).failures == ()


@pytest.mark.parametrize("case", REFERENCE.extreme_cases, ids=lambda case: case.id)
def test_extreme_logits_give_the_exact_value_in_every_floating_type(case: ExtremeCase) -> None:
    assert measure_extreme(case, REFERENCE).failures == ()


@pytest.mark.parametrize("case", [case for case in REFERENCE.cases if case.flag == "DO_NOT_MATCH"], ids=lambda c: c.id)
def test_what_the_authors_got_wrong_is_not_reproduced(case: Case) -> None:
    difference = measure(case, REFERENCE).difference
    assert difference is not None
    assert difference > 1e-3


def test_every_published_vector_is_among_them() -> None:
    if not PUBLISHED.exists():
        pytest.skip("the published file is not beside the repository")
    published, here = (json.loads(path.read_text(encoding="utf-8")) for path in (PUBLISHED, HERE))
    assert all(case in here["cases"] for case in published["cases"])
    for case in published["extreme_cases"]:  # without how the authors' code fails in each floating type
        assert {key: value for key, value in case.items() if key != "official"} in here["extreme_cases"]
    for section in ("format", "conventions", "inputs", "extra", "bonus"):
        assert here[section] == published[section], section
