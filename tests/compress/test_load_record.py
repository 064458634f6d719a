"""A record of a load test adds up, or is none; what it says stands in the model card."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from compress.load_record import LoadRecord, LoadRun, serving_section
from tests.compress.load_records import RECORD, RUN


def record(**changes: Any) -> LoadRecord:
    return LoadRecord.model_validate({**RECORD, "runs": [{**RUN, **changes}]})


def test_section_names_figures_tool_clients_machine_and_date() -> None:
    table, notes = serving_section(record()).split("\n\n")
    assert table.splitlines()[-1] == ("| PNG, 32 x 32 px | 32 | 100,000 | 0 | 120.0 | 150.3 | 201.0 | 250.0 | 83% |")
    assert len({line.count("|") for line in table.splitlines()}) == 1
    for said in ("2026-11-21", "wrk 4.1.0", "AMD EPYC, 2 core(s)", "1 thread(s)", "onnxruntime 1.31.1", "122 MB"):
        assert said in notes


def test_failures_that_are_told_are_shown() -> None:
    failed = record(answered=99_000, not_answered=1000, by_server={"200": 99_000, "503": 900}, seconds=396.0)
    assert "| 100,000 | 1,000 |" in serving_section(failed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answered": 99_990}, "answered and not_answered are not all requests"),
        ({"by_server": {"200": 99_999}}, "the server answered fewer than the clients received"),
        ({"by_server": {}}, "the server answered fewer"),
        ({"by_server": {"200": 100_000, "503": 7}}, "the server counted failures that are missing"),
        ({"by_server": {"200": 100_000, "499": 33}}, "the server counted requests cut off that are missing"),
        ({"p95_ms": 201.5}, "not in order"),
        ({"p50_ms": 151.0}, "not in order"),
        ({"requests_per_second": 255.0, "share_of_runtime": 0.85}, "not answered / seconds"),
        ({"share_of_runtime": 0.9}, "not requests_per_second / runtime_images_per_second"),
        ({"p99_ms": float("nan")}, "finite"),
        ({"request": "a\n# heading"}, "match pattern"),
    ],
)
def test_record_that_does_not_add_up_is_refused(changes: dict[str, Any], message: str) -> None:
    LoadRun.model_validate(RUN)
    with pytest.raises(ValidationError, match=message):
        record(**changes)


def test_record_without_runs_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        LoadRecord.model_validate({**RECORD, "runs": []})
