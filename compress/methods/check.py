"""Compare our losses with a file of values that the authors' own code returned.

    python -m compress.methods.check FILE

One line per kind of case, that is per method and state of the authors' code: how many cases there are, and the worst
relative error of value and gradient. Exit code 1 if anything is off or not covered.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from compress.errors import ArtifactError
from compress.methods.vectors.file import Case, ExtremeCase, read_vector_file
from compress.methods.vectors.measure import Errors, Outcome, measure, measure_extreme


class CaseKind(NamedTuple):
    """Cases that test the same code of the authors."""

    name: str
    num_cases: int
    float64: Errors | None = None
    """The worst among the cases; None where nothing was to be equal."""
    float32: Errors | None = None
    half: Errors | None = None
    """In bfloat16 and float16, against float64 at the rounded inputs."""
    settings: str = ""
    """Names and ranges of the hyper-parameters."""
    remark: str = ""
    failures: tuple[str, ...] = ()
    """What is off or not covered, a line each."""


def check_file(path: Path) -> list[CaseKind]:
    """Compare every case of a file.

    Raises:
        ArtifactError: it cannot be read, or is no file of loss vectors.
    """
    file = read_vector_file(path)
    kinds = [
        *_grouped(file.cases, [measure(case, file) for case in file.cases]),
        *_grouped(file.extreme_cases, [measure_extreme(case, file) for case in file.extreme_cases], " extreme"),
        *(CaseKind(name, 0, failures=(f"{name}: not covered: unknown section",)) for name in file.unknown_sections),
    ]
    if file.bonus:
        from compress.methods.check_features import check_bonus  # it imports this module

        kinds += check_bonus(file.bonus)
    return kinds


def report(kinds: Sequence[CaseKind]) -> str:
    """A table, then what is off or not covered, then the sum."""
    rows = [["", "kind of case", "cases", "float64: value", "gradient", "float32: value", "gradient", "half", "note"]]
    rows += [_row(kind) for kind in kinds]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    failures = list(chain.from_iterable(kind.failures for kind in kinds))
    num_cases = sum(kind.num_cases for kind in kinds)
    verdict = f"{len(failures)} FAILURES" if failures else "all as they must be"
    return "\n".join([*lines, "", *failures, f"{num_cases} cases of {len(kinds)} kinds: {verdict}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m compress.methods.check", description="Check our losses.")
    parser.add_argument("file", type=Path, help="file of loss vectors, format kd-loss-vectors/1")
    try:
        kinds = check_file(parser.parse_args(arguments).file)
    except ArtifactError as error:
        print(error, file=sys.stderr)
        return 1
    print(report(kinds))
    return 1 if any(kind.failures for kind in kinds) else 0


def _grouped(cases: Sequence[Case | ExtremeCase], outcomes: Sequence[Outcome], suffix: str = "") -> Iterable[CaseKind]:
    groups: dict[str, list[tuple[Case | ExtremeCase, Outcome]]] = {}
    for case, outcome in zip(cases, outcomes, strict=True):
        groups.setdefault(f"{case.method}/{case.variant}{suffix}", []).append((case, outcome))
    for name, members in groups.items():
        yield _kind(name, [case for case, _ in members], [outcome for _, outcome in members])


def _kind(name: str, cases: Sequence[Case | ExtremeCase], outcomes: Sequence[Outcome]) -> CaseKind:
    differences = [outcome.difference for outcome in outcomes if outcome.difference is not None]
    remarks = {outcome.remark: None for outcome in outcomes if outcome.remark}
    in_float64 = _worst([outcome.float64 for outcome in outcomes])
    if differences:
        who = "differs, as it must," if in_float64 is None else "our method is off"
        remarks[f"{who} by {min(differences):.1e} to {max(differences):.1e}"] = None
    return CaseKind(
        name,
        len(cases),
        in_float64,
        _worst([outcome.float32 for outcome in outcomes]),
        _worst([outcome.half for outcome in outcomes]),
        _ranges([case.hyper for case in cases]),
        "; ".join(remarks),
        tuple(chain.from_iterable(outcome.failures for outcome in outcomes)),
    )


def _worst(errors: Sequence[Errors | None]) -> Errors | None:
    there = [error for error in errors if error is not None]
    if not there:
        return None
    gradients = [error.gradient for error in there if error.gradient is not None]
    return Errors(max(error.value for error in there), max(gradients) if gradients else None)


def _ranges(hypers: Sequence[Mapping[str, JsonValue]]) -> str:
    """For example "T 1-20, alpha 0.5"."""
    values: dict[str, list[float]] = {}
    for name, value in chain.from_iterable(hyper.items() for hyper in hypers):
        if isinstance(value, int | float):
            values.setdefault(name, []).append(value)
    ends = {name: dict.fromkeys(f"{end:.3g}" for end in (min(found), max(found))) for name, found in values.items()}
    return ", ".join(f"{name} {'-'.join(two)}" for name, two in ends.items())


def _row(kind: CaseKind) -> list[str]:
    verdict = "FAILED" if kind.failures else "ok"
    half = "" if kind.half is None else f"{kind.half.value:.1e}"
    note = "; ".join(text for text in (kind.settings, kind.remark) if text)
    return [verdict, kind.name, str(kind.num_cases), *_cells(kind.float64), *_cells(kind.float32), half, note]


def _cells(errors: Errors | None) -> tuple[str, str]:
    if errors is None:
        return "", ""
    return f"{errors.value:.1e}", "finite" if errors.gradient is None else f"{errors.gradient:.1e}"


if __name__ == "__main__":
    sys.exit(main())
