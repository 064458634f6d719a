"""Which file to ship: the Pareto front, the champion, and in words why every other one lost.

A student has a float32 file and perhaps smaller and faster forms of it; all files of all students are compared with
each other. They are ranked by their accuracy on validation. Choosing the best of many on the test split would make
the champion's test accuracy too good; this way it stays an honest estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from compress.errors import SelectionError
from compress.settings import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Settings

Drop = Annotated[float, Field(ge=-1.0, le=1.0, allow_inf_nan=False)]

FLOAT32 = "float32"
"""The form that every student has."""


class Candidate(Settings):
    """What selection knows of a student's file."""

    name: str
    """Of the student."""
    form: str = FLOAT32
    """Other forms than float32 are candidates only if they gain something and lose no more than was allowed."""
    accuracy_validation: Fraction
    """Top-1; what students are ranked by."""
    accuracy_test: Fraction
    """Top-1; carried along, never compared."""
    latency_ms: NonNegativeFloat
    """Median time to answer one image."""
    size_bytes: PositiveInt
    """Of the file."""
    drop: Drop | None = None
    """The teacher's accuracy on validation minus the student's; negative for a student that is better, None where there
    is no teacher."""

    @property
    def label(self) -> str:
        """The student's name, with the form unless it is float32."""
        return label(self.name, self.form)

    @property
    def size_mb(self) -> float:
        """Of the file, in units of 1e6 bytes."""
        return self.size_bytes / 1e6


def label(name: str, form: str) -> str:
    """How a file is called in words: `small` for a student's float32 file, `small/int8_static` for another form."""
    return name if form == FLOAT32 else f"{name}/{form}"


class Constraints(Settings):
    """What the champion must satisfy; a constraint that is left out holds nobody back."""

    min_accuracy: Fraction | None = None
    """Smallest top-1 accuracy on validation, in [0, 1]."""
    max_latency_ms: PositiveFloat | None = None
    """Largest median time to answer one image, in milliseconds."""
    max_size_mb: PositiveFloat | None = None
    """Largest file, in units of 1e6 bytes."""
    max_drop: Fraction | None = None
    """Largest loss of validation accuracy against the teacher, in [0, 1]: 0.02 is two points."""


class Selection(Settings):
    """The outcome."""

    champion: str
    """Name of the student with the most accurate file that satisfies the constraints; of equal ones the faster, then
    the smaller, then the first by name."""
    form: str = FLOAT32
    """Of the champion's files on the front that satisfy the constraints, the fastest: what its other forms may lose
    was settled when they were made."""
    reason: str
    """Why it won."""
    front: tuple[str, ...]
    """Labels of the files that no other beats in one of accuracy, latency and size without losing in another; best
    first."""
    reasons: dict[str, str]
    """Why every other file lost, by label."""


def select(candidates: Sequence[Candidate], constraints: Constraints) -> Selection:
    """Choose among the files of all students.

    Raises:
        SelectionError: no file satisfies the constraints, or max_drop is set and there is no teacher.
        ValueError: there are no files, or two of one student and form.
    """
    labels = [candidate.label for candidate in candidates]
    if not labels or len(set(labels)) != len(labels):
        raise ValueError(f"selection needs students, each with a name of its own, got {labels}")
    if constraints.max_drop is not None and any(candidate.drop is None for candidate in candidates):
        raise SelectionError("select.max_drop compares with a teacher, and there is none; use select.min_accuracy")
    ranked = sorted(candidates, key=_rank)
    violations = {candidate.label: _violations(candidate, constraints) for candidate in ranked}
    feasible = [candidate for candidate in ranked if not violations[candidate.label]]
    if not feasible:
        listed = "; ".join(f"{name}: {', '.join(broken)}" for name, broken in violations.items())
        raise SelectionError(f"no student satisfies the constraints: {listed}; loosen select.* or add students")
    # Whatever beats the best in everything would satisfy the constraints too and be ranked before it: the first
    # feasible file is on the front.
    best = feasible[0]
    beaten_by = {candidate.label: _dominator(candidate, ranked) for candidate in ranked}
    of_best = [each for each in feasible if each.name == best.name and beaten_by[each.label] is None]
    champion = min(of_best, key=lambda each: (each.latency_ms, each.size_bytes, -each.accuracy_validation))
    return Selection(
        champion=champion.name,
        form=champion.form,
        reason=_why_it_won(champion, best, feasible=feasible, ranked=ranked),
        front=tuple(name for name, better in beaten_by.items() if better is None),
        reasons={
            candidate.label: "; ".join(violations[candidate.label])
            or _why_it_lost(candidate, best, champion, better=beaten_by[candidate.label])
            for candidate in ranked
            if candidate is not champion
        },
    )


def _rank(candidate: Candidate) -> tuple[float, float, int, str]:
    return (-candidate.accuracy_validation, candidate.latency_ms, candidate.size_bytes, candidate.label)


def _violations(candidate: Candidate, constraints: Constraints) -> list[str]:
    """Every constraint a file fails, with both numbers and the distance between them."""
    accuracy, least = candidate.accuracy_validation, constraints.min_accuracy
    broken: list[str] = []
    if least is not None and accuracy < least:
        broken.append(f"less accurate than min_accuracy: {_compared(accuracy, '<', least)} (by {least - accuracy:.3g})")
    upper = (
        ("slower than max_latency_ms", candidate.latency_ms, constraints.max_latency_ms),
        ("larger than max_size_mb", candidate.size_mb, constraints.max_size_mb),
        ("loses more than max_drop", candidate.drop, constraints.max_drop),
    )
    for words, value, most in upper:
        if most is not None and value is not None and value > most:
            broken.append(f"{words}: {_compared(value, '>', most)} (by {value - most:.3g})")
    return broken


def _dominator(candidate: Candidate, ranked: Sequence[Candidate]) -> Candidate | None:
    """The best file that is better in something and worse in nothing."""
    return next((other for other in ranked if _dominates(other, candidate)), None)


def _dominates(other: Candidate, candidate: Candidate) -> bool:
    ours = (-candidate.accuracy_validation, candidate.latency_ms, candidate.size_bytes)
    theirs = (-other.accuracy_validation, other.latency_ms, other.size_bytes)
    return theirs != ours and all(their <= our for their, our in zip(theirs, ours, strict=True))


def _why_it_won(
    champion: Candidate, best: Candidate, *, feasible: Sequence[Candidate], ranked: Sequence[Candidate]
) -> str:
    counted = "students" if all(each.form == FLOAT32 for each in ranked) else "students and forms"
    told = (
        f"most accurate on validation ({best.accuracy_validation:.4g}) of the {len(feasible)} {counted} "
        f"that satisfy the constraints, of {len(ranked)} in all"
    )
    if champion is best:
        return told
    return f"{told}; of its forms {champion.form} is the fastest: {_beside(champion, best)}"


def _why_it_lost(candidate: Candidate, best: Candidate, champion: Candidate, *, better: Candidate | None) -> str:
    """For a file that satisfies the constraints."""
    if better is not None:
        return f"dominated by {better.label}: {_beside(candidate, better)}"
    if candidate.name == champion.name:
        return f"another form of the champion, not its fastest: {_beside(candidate, champion)}"
    if candidate.accuracy_validation == best.accuracy_validation:
        # On the front and ranked after the best at the same accuracy: slower but smaller, or equal in everything.
        if candidate.latency_ms == best.latency_ms:
            return f"equal to {_called(best, champion)} in accuracy, latency and size; {best.name} is first by name"
        slower = _compared(candidate.latency_ms, ">", best.latency_ms)
        return f"as accurate as {_called(best, champion)} but slower: {slower} ms"
    compared = _compared(candidate.accuracy_validation, "<", best.accuracy_validation)
    return f"less accurate than {_called(best, champion)}: {compared}"


def _beside(ours: Candidate, theirs: Candidate) -> str:
    """Everything that is compared, of two files."""
    pairs = (
        ("accuracy", ours.accuracy_validation, theirs.accuracy_validation, ""),
        ("latency", ours.latency_ms, theirs.latency_ms, " ms"),
        ("size", ours.size_mb, theirs.size_mb, " MB"),
    )
    return ", ".join(f"{name} {_compared(one, _sign(one, other), other)}{unit}" for name, one, other, unit in pairs)


def _called(best: Candidate, champion: Candidate) -> str:
    return "the champion" if best is champion else f"the champion's {best.form} form"


def _sign(ours: float, theirs: float) -> str:
    return "=" if ours == theirs else "<" if ours < theirs else ">"


def _compared(ours: float, sign: str, theirs: float) -> str:
    """Both numbers with as many digits as it takes to tell them apart, three at least."""
    for digits in range(3, 18):
        left, right = f"{ours:.{digits}g}", f"{theirs:.{digits}g}"
        if ours == theirs or left != right:
            return f"{left} {sign} {right}"
    raise AssertionError(f"{ours!r} and {theirs!r} differ and read the same")
