"""What is said of a form, from numbers alone."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from compress.quantize.fusion import Fusion
from compress.quantize.saturation import Saturation
from compress.quantize.settings import Budget, Target
from compress.quantize.verdict import Measured, violations, why_kept


def measured(**changes: object) -> Measured:
    return Measured.model_validate(
        {
            "size_bytes": 300,
            "size_ratio": 0.3,
            "sha256": "0" * 64,
            "accuracy_validation": 0.9,
            "drop": 0.0,
            "drop_standard_error": 0.002,
            "agreement": 0.99,
            "batch_error": 0.0,
            "latency_ms_p50": 0.5,
            "latency_ms_p95": 0.6,
            "speedup": 2.0,
            "num_calibration_images": 64,
            "fusion": Fusion(num_layers=10, num_integer=10, float_layers=(), operators={}),
            **changes,
        }
    )


REFERENCE = measured(size_bytes=1000, size_ratio=1.0, latency_ms_p50=1.0, speedup=1.0)
OVERFLOW = Saturation(num_layers=10, num_layers_at_risk=7, accuracy_validation=0.8, drop=0.1, agreement=0.85)


def test_a_good_form_has_no_violations_and_says_what_it_brings() -> None:
    assert violations(measured(), REFERENCE, Budget()) == []
    assert why_kept(measured(), REFERENCE, Target(), machine_has_vnni=True) == (
        "2 times as fast (0.5 ms, float32 1 ms), 30% of the size, loses 0.0000 +- 0.0020 of accuracy"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size_bytes": 1000}, "not smaller: 1000 bytes, float32 has 1000"),
        ({"speedup": 1.0}, "1 times as fast, 1.05 needed"),
        (
            {"speedup": 0.8, "fusion": Fusion(num_layers=9, num_integer=3, float_layers=("a",), operators={})},
            "0.8 times as fast, 1.05 needed (6 of 9 quantised layers run in float)",
        ),
        ({"drop": 0.0101}, "loses 0.0101 +- 0.0020 of validation accuracy, 0.01 allowed"),
    ],
)
def test_each_budget_is_held(changes: dict[str, object], words: str) -> None:
    assert violations(measured(**changes), REFERENCE, Budget()) == [words]


def test_all_violations_are_named() -> None:
    assert len(violations(measured(size_bytes=2000, speedup=0.5, drop=0.5), REFERENCE, Budget())) == 3


@pytest.mark.parametrize(
    ("has_vnni", "drop", "num_violations"),
    [("auto", 0.0, 1), ("auto", 0.5, 2), (True, 0.0, 0), (True, 0.5, 1), (False, 0.0, 1), (False, 0.5, 1)],
)
def test_the_target_decides_which_accuracy_counts(has_vnni: bool | str, drop: float, num_violations: int) -> None:
    budget = Budget(target=Target.model_validate({"has_vnni": has_vnni}))
    found = violations(measured(drop=drop, saturation=OVERFLOW), REFERENCE, budget)
    assert len(found) == num_violations


def test_where_the_numbers_come_from_is_said() -> None:
    overflowing = measured(saturation=OVERFLOW)
    target = Target(has_vnni=False)
    assert why_kept(overflowing, REFERENCE, target, machine_has_vnni=True).endswith(
        "; without VNNI it loses 0.1000; timed on a processor with VNNI, which the target lacks: time it there too"
    )
    told = why_kept(overflowing, REFERENCE, Target(has_vnni=True), machine_has_vnni=False)
    assert told.endswith("; measured on a processor without VNNI, which the target has")


def test_a_target_is_one_of_three() -> None:
    assert Target().has_vnni == "auto"
    with pytest.raises(ValidationError):
        Target.model_validate({"has_vnni": "perhaps"})
