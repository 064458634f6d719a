"""Compare our feature losses with small instances that the authors' own code computed: the `bonus` of a vector file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import JsonValue, TypeAdapter, ValidationError

from compress.methods.check import CaseKind
from compress.methods.vectors.counterpart import NotCoveredError
from compress.methods.vectors.instances import CrdInstance, Findings, Instance, ItrdInstance, VitkdInstance
from compress.methods.vectors.measure import FLOAT32_TOLERANCE, FLOAT64_TOLERANCE, Errors

TOLERANCES = {torch.float64: FLOAT64_TOLERANCE, torch.float32: FLOAT32_TOLERANCE}
INSTANCES: Mapping[str, TypeAdapter[Sequence[Instance]]] = {
    "CRD": TypeAdapter(list[CrdInstance]),
    "ITRD": TypeAdapter(list[ItrdInstance]),
    "ViTKD": TypeAdapter(list[VitkdInstance]),
}
"""By the names in the file."""


def check_bonus(bonus: Mapping[str, JsonValue]) -> list[CaseKind]:
    """Compare every instance, one kind for each method; whatever has no counterpart is a failure."""
    return [_check_method(name, content) for name, content in bonus.items()]


def _check_method(name: str, content: JsonValue) -> CaseKind:
    title = f"{name}/features"
    if name not in INSTANCES:
        return CaseKind(title, 0, failures=(f"{title}: not covered: there is no method of that name",))
    try:
        instances = INSTANCES[name].validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        return CaseKind(title, 0, failures=(f"{title}: not covered: {place}: {first['msg']}",))
    failures: list[str] = []
    worst = {dtype: _check_all(instances, dtype, tolerance, failures) for dtype, tolerance in TOLERANCES.items()}
    settings = "; ".join(dict.fromkeys(instance.settings() for instance in instances))
    return CaseKind(
        title, len(instances), worst[torch.float64], worst[torch.float32], settings=settings, failures=tuple(failures)
    )


def _check_all(
    instances: Sequence[Instance], dtype: torch.dtype, tolerance: float, failures: list[str]
) -> Errors | None:
    """The worst errors; adds to `failures` what is off."""
    worst: list[Findings] = []
    for instance in instances:
        try:
            findings = instance.compare(dtype)
        except (NotCoveredError, RuntimeError, IndexError) as error:  # the latter two where shapes do not fit
            failures.append(f"{instance.id}: not covered: {error}")
            continue
        worst.append(findings)
        for what, errors in (("value", findings.values), ("gradient", findings.gradients)):
            failures += [
                f"{instance.id}: the {what} of {name} in {str(dtype).removeprefix('torch.')} is {error:.1e} off, "
                f"more than {tolerance:.0e}"
                for name, error in errors.items()
                if error > tolerance
            ]
    if not worst:
        return None
    return Errors(max(max(each.values.values()) for each in worst), max(max(each.gradients.values()) for each in worst))
