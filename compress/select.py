"""Which student to ship: the Pareto front, the champion, and in words why every other student lost.

Students are ranked by their accuracy on validation. Choosing the best of many on the test split would make the
champion's test accuracy too good; this way it stays an honest estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from compress.errors import SelectionError
from compress.settings import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Settings

Drop = Annotated[float, Field(ge=-1.0, le=1.0, allow_inf_nan=False)]


class Candidate(Settings):
    """What selection knows of a student."""

    name: str
    accuracy_validation: Fraction
    """Top-1; what students are ranked by."""
    accuracy_test: Fraction
    """Top-1; carried along, never compared."""
    latency_ms: NonNegativeFloat
    """Median time to answer one image."""
    size_bytes: PositiveInt
    """Of the exported file."""
    drop: Drop | None = None
    """The teacher's accuracy on validation minus the student's; negative for a student that is better, None where there
    is no teacher."""

    @property
    def size_mb(self) -> float:
        """Of the exported file, in units of 1e6 bytes."""
        return self.size_bytes / 1e6


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
    """The most accurate student that satisfies the constraints; of equal ones the faster, then the smaller, then the
    first by name."""
    reason: str
    """Why it won."""
    front: tuple[str, ...]
    """Students that no other beats in one of accuracy, latency and size without losing in another; best first."""
    reasons: dict[str, str]
    """Why every other student lost."""


def select(candidates: Sequence[Candidate], constraints: Constraints) -> Selection:
    """Choose among students.

    Raises:
        SelectionError: no student satisfies the constraints, or max_drop is set and there is no teacher.
        ValueError: there are no students, or two of one name.
    """
    names = [candidate.name for candidate in candidates]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"selection needs students, each with a name of its own, got {names}")
    if constraints.max_drop is not None and any(candidate.drop is None for candidate in candidates):
        raise SelectionError("select.max_drop compares with a teacher, and there is none; use select.min_accuracy")
    ranked = sorted(candidates, key=_rank)
    violations = {candidate.name: _violations(candidate, constraints) for candidate in ranked}
    feasible = [candidate for candidate in ranked if not violations[candidate.name]]
    if not feasible:
        listed = "; ".join(f"{name}: {', '.join(broken)}" for name, broken in violations.items())
        raise SelectionError(f"no student satisfies the constraints: {listed}; loosen select.* or add students")
    # Whoever beats the champion in everything would satisfy the constraints too and be ranked before it: the first
    # feasible student is on the front.
    champion = feasible[0]
    beaten_by = {candidate.name: _dominator(candidate, ranked) for candidate in ranked}
    return Selection(
        champion=champion.name,
        reason=_why_it_won(champion, num_feasible=len(feasible), num_candidates=len(ranked)),
        front=tuple(name for name, better in beaten_by.items() if better is None),
        reasons={
            candidate.name: "; ".join(violations[candidate.name])
            or _why_it_lost(candidate, champion, better=beaten_by[candidate.name])
            for candidate in ranked
            if candidate is not champion
        },
    )


def _rank(candidate: Candidate) -> tuple[float, float, int, str]:
    return (-candidate.accuracy_validation, candidate.latency_ms, candidate.size_bytes, candidate.name)


def _violations(candidate: Candidate, constraints: Constraints) -> list[str]:
    """Every constraint a student fails, with both numbers and the distance between them."""
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
    """The best student that is better in something and worse in nothing."""
    return next((other for other in ranked if _dominates(other, candidate)), None)


def _dominates(other: Candidate, candidate: Candidate) -> bool:
    ours = (-candidate.accuracy_validation, candidate.latency_ms, candidate.size_bytes)
    theirs = (-other.accuracy_validation, other.latency_ms, other.size_bytes)
    return theirs != ours and all(their <= our for their, our in zip(theirs, ours, strict=True))


def _why_it_won(champion: Candidate, *, num_feasible: int, num_candidates: int) -> str:
    return (
        f"most accurate on validation ({champion.accuracy_validation:.4g}) of the {num_feasible} students "
        f"that satisfy the constraints, of {num_candidates} in all"
    )


def _why_it_lost(candidate: Candidate, champion: Candidate, *, better: Candidate | None) -> str:
    """For a student that satisfies the constraints."""
    pairs = (
        ("accuracy", candidate.accuracy_validation, (better or champion).accuracy_validation, ""),
        ("latency", candidate.latency_ms, (better or champion).latency_ms, " ms"),
        ("size", candidate.size_mb, (better or champion).size_mb, " MB"),
    )
    if better is not None:
        told = ", ".join(
            f"{name} {_compared(ours, _sign(ours, theirs), theirs)}{unit}" for name, ours, theirs, unit in pairs
        )
        return f"dominated by {better.name}: {told}"
    if candidate.accuracy_validation == champion.accuracy_validation:
        # On the front and ranked after the champion at the same accuracy: slower but smaller, or equal in everything.
        if candidate.latency_ms == champion.latency_ms:
            return f"equal to the champion in accuracy, latency and size; {champion.name} is first by name"
        return f"as accurate as the champion but slower: {_compared(candidate.latency_ms, '>', champion.latency_ms)} ms"
    compared = _compared(candidate.accuracy_validation, "<", champion.accuracy_validation)
    return f"less accurate than the champion: {compared}"


def _sign(ours: float, theirs: float) -> str:
    return "=" if ours == theirs else "<" if ours < theirs else ">"


def _compared(ours: float, sign: str, theirs: float) -> str:
    """Both numbers with as many digits as it takes to tell them apart, three at least."""
    for digits in range(3, 18):
        left, right = f"{ours:.{digits}g}", f"{theirs:.{digits}g}"
        if ours == theirs or left != right:
            return f"{left} {sign} {right}"
    raise AssertionError(f"{ours!r} and {theirs!r} differ and read the same")
