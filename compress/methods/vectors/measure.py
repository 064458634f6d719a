"""How far our value and gradient are from those of one case."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from compress.methods.cross_entropy import CrossEntropy
from compress.methods.vectors.counterpart import Batch, Counterpart, Hyper, NotCoveredError, Term, hard
from compress.methods.vectors.file import Case, ExtremeCase, VectorFile, as_tensor
from compress.methods.vectors.teacher_free import TEACHER_FREE
from compress.methods.vectors.with_teacher import WITH_TEACHER

COUNTERPARTS: dict[tuple[str, str], Callable[[Hyper], Counterpart]] = {**TEACHER_FREE, **WITH_TEACHER}
FLOAT64_TOLERANCE = 1e-10
"""Relative; the file holds 13 to 15 digits."""
FLOAT32_TOLERANCE = 2e-5
"""Relative; what sums of 100 exponentials may lose in 24 bits, with room."""
HALF_TYPES = (torch.bfloat16, torch.float16)
NUMBER = r"(\d+(?:\.\d*)?(?:e[+-]?\d+)?)"
LOOP = re.compile(rf"(?:{NUMBER}\*)?CE \+ (?:{NUMBER}\*|min\(epoch/warmup,1\)\*)?loss\b")
"""How a training loop adds up; a warm-up is shown finished."""


class Errors(NamedTuple):
    """Relative errors."""

    value: float
    gradient: float | None
    """None where only its being finite was examined."""


class Outcome(NamedTuple):
    """One case."""

    float64: Errors | None = None
    float32: Errors | None = None
    half: Errors | None = None
    """In bfloat16 and float16, against float64 at the rounded logits."""
    difference: float | None = None
    """Of the value, where it is right to differ."""
    remark: str = ""
    failures: tuple[str, ...] = ()
    """What is off or not covered, a line each."""


def measure(case: Case, file: VectorFile) -> Outcome:
    """Compare value, gradient, components and the training loop's total of an ordinary case."""
    try:
        counterpart = find(case)
        batch = batch_of(case, counterpart, file, torch.float64)
        if case.flag == "DO_NOT_MATCH":
            return _must_differ(case, counterpart, batch)
        if case.flag not in (None, "TIE_DEPENDENT"):
            raise NotCoveredError(f"the flag {case.flag!r} is unknown")
        in_float64 = _errors(case, counterpart.loss, batch)
        in_float32 = _errors(case, counterpart.loss, batch_of(case, counterpart, file, torch.float32))
        tolerance = FLOAT64_TOLERANCE if case.dtype == "float64" else FLOAT32_TOLERANCE
        off = [
            *_complaints("float64", in_float64, tolerance),
            *_complaints("float32", in_float32, FLOAT32_TOLERANCE),
            *_parts_off(case, counterpart, batch, tolerance),
        ]
        difference = None
        if counterpart.deviating is not None:
            difference = relative_error(_value(counterpart.deviating, batch), case.loss)
    except NotCoveredError as error:
        return Outcome(failures=(f"{case.id}: not covered: {error}",))
    failures = tuple(f"{case.id}: {line}" for line in off)
    return Outcome(in_float64, in_float32, difference=difference, remark=counterpart.remark, failures=failures)


def measure_extreme(case: ExtremeCase, file: VectorFile) -> Outcome:
    """Compare the value with the exact one in four floating types, and see that gradients are finite."""
    try:
        counterpart = find(case)
        batches = {
            dtype: batch_of(case, counterpart, file, dtype) for dtype in (torch.float64, torch.float32, *HALF_TYPES)
        }
        results = {dtype: value_and_gradient(counterpart.loss, batch) for dtype, batch in batches.items()}
        half = [
            relative_error(results[dtype][0], _value(counterpart.loss, in_double(batches[dtype])))
            for dtype in HALF_TYPES
        ]
    except NotCoveredError as error:
        return Outcome(failures=(f"{case.id}: not covered: {error}",))
    exact = case.stable_value_mpmath
    in_float64, in_float32 = (
        Errors(relative_error(results[dtype][0], exact), None) for dtype in (torch.float64, torch.float32)
    )
    in_half = Errors(max(half), None)
    off = [
        *_complaints("float64", in_float64, FLOAT64_TOLERANCE),
        *_complaints("float32", in_float32, FLOAT32_TOLERANCE),
        *_complaints("bfloat16 or float16", in_half, FLOAT32_TOLERANCE),
        *(
            f"the gradient in {d} is not finite"
            for d, (_, gradient) in results.items()
            if not gradient.isfinite().all()
        ),
    ]
    failures = tuple(f"{case.id}: {line}" for line in off)
    return Outcome(in_float64, in_float32, in_half, remark=counterpart.remark, failures=failures)


def find(case: Case | ExtremeCase) -> Counterpart:
    """Our side of a case.

    Raises:
        NotCoveredError: there is none.
    """
    build = COUNTERPARTS.get((case.method, case.variant))
    if build is None:
        raise NotCoveredError(f"no counterpart of {case.method}/{case.variant}")
    hyper = Hyper(case.hyper)
    try:
        counterpart = build(hyper)
    except ValidationError as error:
        first = error.errors()[0]
        raise NotCoveredError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if hyper.rest:
        raise NotCoveredError(f"the hyper-parameters {', '.join(hyper.rest)} are unknown")
    return counterpart


def batch_of(case: Case | ExtremeCase, counterpart: Counterpart, file: VectorFile, dtype: torch.dtype) -> Batch:
    """The inputs of a case, logits rounded to a floating type.

    Raises:
        NotCoveredError: it is on mixed labels, and the input has none.
    """
    inputs = file.inputs[case.input]
    labels = torch.tensor(inputs.target)
    if counterpart.soft_labels:
        if inputs.soft_target is None:
            raise NotCoveredError(f"the input {case.input} has no soft_target")
        labels = as_tensor(inputs.soft_target)
    student, teacher = as_tensor(inputs.student_logits, dtype), as_tensor(inputs.teacher_logits, dtype)
    return Batch(student.requires_grad_(), teacher, labels, file.extra)


def in_double(batch: Batch) -> Batch:
    """The same numbers in float64."""
    return batch._replace(student=batch.student.detach().double(), teacher=batch.teacher.double())


def value_and_gradient(term: Term, batch: Batch) -> tuple[float, Tensor]:
    """Of a scalar term, the gradient in float64."""
    value = term(batch)
    (gradient,) = torch.autograd.grad(value, batch.student)
    return value.item(), gradient.double()


def relative_error(value: float, expected: float) -> float:
    """Infinite for what is no number; absolute near zero, where the expected digits are themselves rounding."""
    error = abs(value - expected) / (abs(expected) if abs(expected) > 1e-12 else 1.0)
    return math.inf if math.isnan(error) else error


def _value(term: Term, batch: Batch) -> float:
    with torch.no_grad():
        return term(batch).item()


def _errors(case: Case, term: Term, batch: Batch) -> Errors:
    value, gradient = value_and_gradient(term, batch)
    of_gradient = [
        relative_error(gradient.norm().item(), case.grad_l2),
        relative_error(gradient.abs().sum().item(), case.grad_abs_sum),
    ]
    if case.grad is not None:
        expected = as_tensor(case.grad)
        if expected.shape != gradient.shape:
            raise NotCoveredError(f"grad has shape {tuple(expected.shape)}, the logits {tuple(gradient.shape)}")
        largest = expected.abs().max().item()
        of_gradient.append(relative_error((gradient - expected).abs().max().item() + largest, largest))
    return Errors(relative_error(value, case.loss), max(of_gradient))


def _must_differ(case: Case, counterpart: Counterpart, batch: Batch) -> Outcome:
    difference = relative_error(_value(counterpart.loss, batch), case.loss)
    equal = difference <= FLOAT32_TOLERANCE
    failures = (f"{case.id}: equals a value that it must not equal",) if equal else ()
    return Outcome(difference=difference, remark=counterpart.remark, failures=failures)


def _parts_off(case: Case, counterpart: Counterpart, batch: Batch, tolerance: float) -> Iterable[str]:
    for name, expected in case.components.items():
        if name not in counterpart.components:
            raise NotCoveredError(f"the component {name} is unknown")
        with torch.no_grad():
            ours = counterpart.components[name](batch).flatten().tolist()
        listed = expected if isinstance(expected, list) else [expected]
        if len(ours) != len(listed) or max(map(relative_error, ours, listed)) > tolerance:
            yield f"the component {name} is {ours}, not {listed}"
    if case.official_loop is not None:
        loop, found = case.official_loop, LOOP.match(case.official_loop.expression)
        if counterpart.total is None or found is None:
            raise NotCoveredError(f"the training loop {loop.expression!r} is unknown")
        weight_of_ce, weight = (float(group or 1) for group in found.groups())
        sums = {"CE": (hard(CrossEntropy()), loop.ce), "total": (counterpart.total(weight_of_ce, weight), loop.total)}
        for name, (term, expected) in sums.items():
            if relative_error(ours := _value(term, batch), expected) > tolerance:
                yield f"the training loop's {name} is {ours!r}, not {expected!r}"


def _complaints(dtype: str, errors: Errors, tolerance: float) -> Iterable[str]:
    if errors.value > tolerance:
        yield f"the value in {dtype} is {errors.value:.1e} off, more than {tolerance:.0e}"
    if errors.gradient is not None and errors.gradient > tolerance:
        yield f"the gradient in {dtype} is {errors.gradient:.1e} off, more than {tolerance:.0e}"
