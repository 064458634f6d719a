"""What became of every form that was tried, for the table of all students."""

from __future__ import annotations

from typing import Any

from compress.files import read_json
from compress.select import FLOAT32
from pipelines.layout import Layout


def searched_forms(layout: Layout, name: str) -> list[dict[str, Any]]:
    """One entry for each candidate of a student: the search's numbers, and the outcome after the second measurement.

    Raises:
        ArtifactError: the student's export or evaluation is missing or damaged.
    """
    report = read_json(layout.exported(name) / "forms.json", made_by="export")
    again = read_json(layout.results(name) / "details.json", made_by="evaluate")["forms"]
    return [_entry(name, form, again.get(form["form"])) for form in report["forms"] if form["form"] != FLOAT32]


def _entry(name: str, form: dict[str, Any], again: dict[str, Any] | None) -> dict[str, Any]:
    measured = form["measured"] or {}
    outcome = again or form
    return {
        "student": name,
        "form": form["form"],
        "is_kept": form["is_kept"] and outcome["is_kept"],
        "reason": outcome["reason"],
        "size_ratio": measured.get("size_ratio"),
        "speedup_over_float32": again["speedup_over_float32"] if again else measured.get("speedup"),
        "drop_from_float32_validation": again["drop_from_float32_validation"] if again else measured.get("drop"),
        "drop_standard_error": measured.get("drop_standard_error"),
        "agreement_with_float32_validation": measured.get("agreement"),
        "without_vnni": measured.get("saturation"),
    }


def form_notes(file: dict[str, Any], metrics: dict[str, float]) -> list[str]:
    """What whoever uses a form's file has to know, in sentences."""
    measured = file["measured"]
    notes = [
        f"Form `{file['form']}`, made of the float32 file: {metrics['speedup_over_float32']:.2f} times as fast, "
        f"{measured['size_ratio']:.0%} of the size; it loses {metrics['drop_from_float32']:.2%} of accuracy on test "
        f"and {metrics['drop_from_float32_validation']:.2%} on validation (standard error "
        f"{measured['drop_standard_error']:.2%}; {file['budget']['max_drop']:.2%} were allowed), and gives the float32 "
        f"file's answer to {metrics['agreement_with_float32']:.2%} of the test images."
    ]
    saturation = measured["saturation"]
    if saturation is not None and saturation["num_layers_at_risk"] == 0:
        notes.append("On x86 processors without VNNI it answers the same: none of its sums can overflow there.")
    if saturation is not None and saturation["num_layers_at_risk"]:
        notes.append(
            f"On x86 processors without VNNI sums overflow in {saturation['num_layers_at_risk']} of "
            f"{saturation['num_layers']} layers, by simulation: there it loses {saturation['drop']:.2%} on validation "
            f"and gives {saturation['agreement']:.2%} of the answers that it gives elsewhere."
            + (" It is meant for processors with VNNI." if file["budget"]["target"]["has_vnni"] is True else "")
        )
    if measured["batch_error"] > BATCH_TOLERANCE:
        notes.append("Its answer to an image depends on the other images of the batch.")
    return notes


BATCH_TOLERANCE = 1e-3
"""Of the largest logit; beyond it rounding in float32 is no explanation any more."""
GOLDEN_TOLERANCE = 0.02
"""Of the largest logit: in 8 bits another processor or runtime rounds some values to the next step."""


def golden_tolerance(file: dict[str, Any]) -> float:
    """How far a form's answers may be off on another machine, as a fraction of the largest logit.

    Where sums may overflow and did so within the budget, the file rightly answers something else there.
    """
    saturation = file["measured"]["saturation"]
    if saturation is None or file["budget"]["target"]["has_vnni"] is True:
        return GOLDEN_TOLERANCE
    return min(max(GOLDEN_TOLERANCE, 2 * saturation["logit_error"]), 0.99)
