"""Smaller and faster forms of the file that a student ships, searched by its export stage.

Left beside the float32 file: the files of the forms that are kept. forms.json says of every candidate what was
measured and why it is kept or not. Latencies differ from run to run, so a form close to its bounds may be kept in one
run and not in the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.data.prepared import PreparedData
from compress.errors import ParityError
from compress.export import ExportSettings
from compress.files import write_record
from compress.quantize.machine import has_vnni
from compress.quantize.search import search_forms
from compress.quantize.settings import Budget, SearchSettings
from compress.quantize.verdict import FormResult
from compress.runtime import load_predictor
from compress.types import Predictor

REPORT = "forms.json"


class FormsSettings(ExportSettings):
    """From a trained network to ONNX files."""

    forms: SearchSettings | None = None
    """Other forms that are tried on each student's shipped file; null tries none. They are calibrated on train images,
    scored on validation images and timed in turns with the float32 file."""


def leave_no_forms(folder: Path) -> None:
    """What later stages read where no forms are searched."""
    write_record(folder / REPORT, {"settings": None, "forms": []})


def find_forms(
    folder: Path,
    shipped: dict[str, Any],
    data: PreparedData,
    *,
    settings: SearchSettings,
    parity: Callable[[str, Predictor], dict[str, Any]],
    given: Mapping[str, Path] | None = None,
) -> list[dict[str, Any]]:
    """Search forms of the shipped file, write forms.json, and return what export.json says about those that are kept.

    `given` are files of forms that were trained; they are judged like the candidates of the settings.
    `parity` compares a form, named by its label, with the network. A form that is further off than broken rounding
    explains is not kept, whatever its accuracy.

    Raises:
        ModelError: the shipped file is not in float32.
    """
    source = folder / shipped["file"]
    results = search_forms(
        source,
        calibration=data.split("train"),
        validation=data.split("validation"),
        settings=settings,
        output_folder=source.parent,
        given=given,
    )
    proved = {result.form: _proved(result, source.parent, parity) for result in results if result.file is not None}
    checked = [proved[result.form][0] if result.form in proved else result for result in results]
    write_record(folder / REPORT, _report(shipped, checked, settings))
    for result in checked:
        print(f"  {result.form}: {result.reason}")
    place = Path(shipped["file"]).parent
    return [
        {**_entry(place / result.file, shipped, result, settings), "parity": compared}
        for result, compared in proved.values()
        if result.file is not None
    ]


def _report(shipped: dict[str, Any], checked: Sequence[FormResult], settings: SearchSettings) -> dict[str, Any]:
    """What forms.json says."""
    return {
        "seed": shipped["seed"],
        "source": {"file": shipped["file"], "sha256": shipped["sha256"]},
        "settings": settings.model_dump(mode="json"),
        "machine_has_vnni": has_vnni(),
        "forms": [result.model_dump(mode="json") for result in checked],
    }


def _proved(
    result: FormResult, folder: Path, parity: Callable[[str, Predictor], dict[str, Any]]
) -> tuple[FormResult, dict[str, Any]]:
    """A form that the search kept, held beside the network; its file goes if it answers something else."""
    assert result.file is not None
    path = folder / result.file
    try:
        return result, parity(result.form, load_predictor(path))
    except ParityError as error:
        path.unlink()
        return result.model_copy(update={"is_kept": False, "file": None, "reason": str(error)}), {}


def _entry(file: Path, shipped: dict[str, Any], result: FormResult, settings: SearchSettings) -> dict[str, Any]:
    """What export.json says about a form, the budget that it must keep to when it is measured again included."""
    assert result.measured is not None
    measured = result.measured
    budget = {name: value for name, value in settings.model_dump(mode="json").items() if name in Budget.model_fields}
    return {
        **shipped,
        "form": result.form,
        "file": str(file),
        "sha256": measured.sha256,
        "size_bytes": measured.size_bytes,
        "accuracy_top1_validation": measured.accuracy_validation,
        "reason": result.reason,
        "budget": budget,
        "measured": measured.model_dump(mode="json"),
    }
