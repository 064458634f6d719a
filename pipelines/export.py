"""Stage export: every trained network of one name as an ONNX file that is proved to compute the same.

Of the file that a student ships, smaller and faster forms are searched where params.yaml asks for them.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from pydantic import JsonValue
from torch import nn

from compress.artifact import ModelCard, load_model
from compress.data.prepared import PreparedData, load_prepared
from compress.data.preprocessing import Preprocessing
from compress.export import export_onnx
from compress.export.any_size import write_any_size_entry
from compress.export.float_forms import write_float_entry
from compress.export.provenance import metric_units
from compress.files import read_json, write_record
from compress.image_files import ShippedPath, TorchvisionPath
from compress.parity import Parity, assert_parity
from compress.quantize.qat_artifact import load_quantization_aware
from compress.quantize.qat_file import FORM as TRAINED
from compress.quantize.qat_file import export_quantization_aware
from compress.quantize.settings import SearchSettings
from compress.quantize.verdict import FLOAT32
from compress.runtime import OnnxPredictor, load_predictor
from compress.settings import Settings
from compress.types import Predictor
from pipelines.absence import is_absent, leave_note
from pipelines.finished_work import drop_training
from pipelines.forms import FormsSettings, find_forms, leave_no_forms
from pipelines.layout import QUANTIZATION_AWARE, TEACHER, Layout
from pipelines.origin import without_machine
from pipelines.params import load_params
from pipelines.samples import sample_files


class ExportParams(Settings):
    """Sections that this stage reads."""

    export: FormsSettings = FormsSettings()


def run(root: Path, name: str) -> None:
    """Export each seed of a student, or the teacher, and name the file that is shipped.

    Raises:
        ParityError: an exported file and its network disagree by more than the tolerance.
    """
    layout = Layout(root)
    settings = load_params(ExportParams, layout.params).export
    if name == TEACHER and is_absent(layout.teacher):
        leave_note(layout.exported(TEACHER))
        return
    training = read_json(layout.results(name) / "training.json", made_by="teacher" if name == TEACHER else "distill")
    data = load_prepared(layout.prepared)
    pictures = _Pictures(sample_files(data, "validation", settings.num_parity_images), data.manifest.preprocessing)
    files = [_export(layout, name, summary["seed"], settings, pictures) for summary in training["seeds"]]
    # Chosen on validation, so that the test accuracy of the shipped file stays an honest estimate.
    shipped = max(files, key=lambda file: (file["accuracy_top1_validation"], -file["seed"]))
    (of_shipped,) = [summary for summary in training["seeds"] if summary["seed"] == shipped["seed"]]
    rounded = layout.trained(name, shipped["seed"], QUANTIZATION_AWARE) if QUANTIZATION_AWARE in of_shipped else None
    folder = layout.exported(name)
    if name == TEACHER or (settings.forms is None and rounded is None):
        leave_no_forms(folder)
        forms: list[dict[str, Any]] = []
    else:
        network, _ = load_model(_trained(layout, name, shipped["seed"], settings))
        forms = _forms(folder, shipped, _References(network, rounded), data, settings, pictures)
    write_record(folder / "export.json", {"shipped": shipped, "files": files, "forms": forms})
    drop_training(layout, name)


class _References(NamedTuple):
    """What the forms of a file are made of."""

    network: nn.Module
    rounded: Path | None
    """Folder of the network that was trained with the rounding of its 8-bit file."""


def _forms(
    folder: Path,
    shipped: dict[str, Any],
    references: _References,
    data: PreparedData,
    settings: FormsSettings,
    pictures: _Pictures,
) -> list[dict[str, Any]]:
    """Search the forms that the settings ask for, and judge the one that was trained by the same budget."""
    networks: dict[str, nn.Module] = {}
    given: dict[str, Path] = {}
    with TemporaryDirectory() as scratch:
        if references.rounded is not None:
            network, card = load_quantization_aware(references.rounded)
            networks[TRAINED], given[TRAINED] = network, Path(scratch) / f"{TRAINED}.onnx"
            metadata = _metadata(folder.name, card)
            size = (card.height, card.width)
            export_quantization_aware(network, given[TRAINED], image_size=size, settings=settings, metadata=metadata)

        def parity(form: str, predict: Predictor) -> dict[str, Any]:
            of = networks.get(form, references.network)
            return _parity(of, predict, pictures, tolerance=settings.tolerance_of(form)).model_dump(mode="json")

        wanted = settings.forms or SearchSettings(candidates=())
        return find_forms(folder, shipped, data, settings=wanted, parity=parity, given=given)


def _export(layout: Layout, name: str, seed: int, settings: FormsSettings, pictures: _Pictures) -> dict[str, Any]:
    """Write one seed's float32 file and describe it."""
    path = layout.exported(name) / f"seed_{seed}" / f"{FLOAT32}.onnx"
    network, card = load_model(_trained(layout, name, seed, settings))
    export_onnx(network, path, image_size=(card.height, card.width), settings=settings, metadata=_metadata(name, card))
    exported = load_predictor(path)
    parity = _parity(network, exported, pictures, tolerance=settings.tolerance)
    if settings.float_entry:
        write_float_entry(path, path.with_name(f"{FLOAT32}_nchw.onnx"))
    if settings.any_size_entry:
        write_any_size_entry(path, path.with_name(f"{FLOAT32}_any_size.onnx"))
    print(
        f"{name} seed {seed}: {exported.size_bytes / 1e6:.3f} MB, differs from torch by "
        f"{parity.relative_error:.1e} of the largest logit on {parity.num_images} images"
    )
    return _entry(path.relative_to(layout.exported(name)), seed, card, exported, parity)


def _trained(layout: Layout, name: str, seed: int, settings: FormsSettings) -> Path:
    return layout.teacher if name == TEACHER else layout.trained(name, seed, settings.weights)


class _Pictures(NamedTuple):
    """What network and file are compared on: both go the whole way from image files to logits."""

    files: list[bytes]
    preprocessing: Preprocessing


def _parity(network: nn.Module, predict: Predictor, pictures: _Pictures, *, tolerance: float) -> Parity:
    reference = TorchvisionPath(network, pictures.preprocessing)
    shipped = ShippedPath(predict, pictures.preprocessing)
    return assert_parity(reference, shipped, pictures.files, tolerance=tolerance)


def _metadata(name: str, card: ModelCard) -> dict[str, JsonValue]:
    """What whoever meets the file alone wants to know."""
    return {
        "name": name,
        "task": "image classification",
        "classes": list(card.classes),
        "input": "image: uint8 RGB pixels, batch x height x width x 3; normalisation is inside",
        "output": "logits: float32, batch x classes",
        "preprocessing": dict(card.preprocessing),
        "architecture": card.architecture.model_dump(mode="json", exclude_none=True),
        "training": card.training,
        "seed": card.seed,
        "epoch": card.epoch,
        "metrics": dict(card.metrics),
        "metric_units": metric_units(card.metrics),
        "num_parameters": card.num_parameters,
        "flops": card.flops,
        "fingerprint": card.fingerprint,
        "weights_sha256": card.weights_sha256,
        "lineage": dict(card.lineage),
        "origin": without_machine(card.origin),
    }


def _entry(file: Path, seed: int, card: ModelCard, exported: OnnxPredictor, parity: Parity) -> dict[str, Any]:
    """What export.json says about one file."""
    return {
        "seed": seed,
        "form": FLOAT32,
        "file": str(file),
        "sha256": exported.sha256,
        "size_bytes": exported.size_bytes,
        "epoch": card.epoch,
        "accuracy_top1_validation": card.metrics["accuracy_top1_validation"],
        "num_parameters": card.num_parameters,
        "flops": card.flops,
        "parity": parity.model_dump(mode="json"),
    }
