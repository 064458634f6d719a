"""What 8-bit forms gain over float32 in ONNX Runtime, and what they lose on the full CIFAR-100 test split.

    python -m benchmarks.forms --data cifar100.zip                       # trains briefly, about 8 minutes on two cores
    python -m benchmarks.forms --data cifar100.zip --onnx exports/x/seed_0/float32.onnx   # a file of yours instead

Images, checkpoints of every epoch and exported files stay in the folder --work: the same command run again goes on
where it was stopped, and with everything there it only searches and measures. Forms are searched as the export stage
does it (compress.quantize), and those that are kept are then scored on the test split, of which nothing is chosen. Each
network also trains on with the rounding of its 8-bit file, with the network in float32 as its teacher (KD).
Prints a line for each form and one JSON object, which is also written to results/forms.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import onnxruntime
from torch import nn

from benchmarks.training import machine
from compress.batches import TrainingData
from compress.checkpoint import CheckpointFolder
from compress.data import DataSettings, ImageFolder
from compress.data.prepare import prepare
from compress.data.prepared import ArraySplit, PreparedData, PreparedSplit, load_prepared
from compress.data.view_schedule import ViewSettings
from compress.data.views import PadCropFlip
from compress.export import ExportSettings, export_onnx
from compress.files import write_json
from compress.fingerprint import fingerprint
from compress.methods import KD, CrossEntropy
from compress.models import Cifar, Network, Statistics, build_network
from compress.models.cifar import CifarName
from compress.optimization import SGD, OneCycle
from compress.quantize import Int8Static
from compress.quantize.qat import QatNetwork, QatSettings, quantization_aware
from compress.quantize.qat_file import FORM, export_quantization_aware
from compress.quantize.search import search_forms
from compress.quantize.settings import SearchSettings, Target
from compress.quantize.verdict import FLOAT32, FormResult, fastest
from compress.runtime import load_predictor
from compress.teacher_logits import OnlineTeacher
from compress.train import train_epochs
from compress.training_state import EpochReport, TrainSettings, new_training_state

STUDENTS: tuple[CifarName, ...] = ("resnet8x4", "MobileNetV2")
"""One made of ordinary convolutions, one of depthwise ones."""
CANDIDATES = (
    Int8Static(),
    Int8Static(float_ends=True),
    Int8Static(reduce_range=True),
    Int8Static(reduce_range=True, float_ends=True),
)
RESULTS = Path(__file__).parent / "results" / "forms.json"


class Answers(NamedTuple):
    """What a file says about the test split."""

    is_right: np.ndarray
    """For each image."""

    @property
    def accuracy(self) -> float:
        return float(self.is_right.mean())


def main() -> None:
    """Train what is missing, search forms, score them on test, print and keep it."""
    options = _options()
    data = _prepared(options.data, options.work / "prepared")
    files = {path.parent.parent.name or path.stem: path for path in options.onnx}
    rounded: dict[str, dict[str, Path]] = {}
    for name in options.students if not files else ():
        files[name], network = trained(name, data, options)
        rounded[name] = {FORM: trained_with_rounding(network, files[name], data, options)}
    results = [measured(name, path, data, options, given=rounded.get(name, {})) for name, path in files.items()]
    summary = {
        "train_images": None if options.onnx else options.train_images,
        "epochs": None if options.onnx else options.epochs,
        "rounding_images": None if options.onnx else options.rounding_images,
        "num_test_images": len(data.split("test")),
        "threads": 1,
        "students": results,
        "machine": {**machine(), "onnxruntime": onnxruntime.__version__},
    }
    write_json(options.results, summary)
    print(json.dumps(summary))


def _options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What 8-bit forms gain and lose.")
    parser.add_argument("--data", type=Path, required=True, help="folder or zip of CIFAR-100 in class folders")
    parser.add_argument("--work", type=Path, default=Path(".work/benchmark_forms"), help="where everything is kept")
    parser.add_argument("--onnx", type=Path, action="append", default=[], help="a float32 file to use; trains nothing")
    parser.add_argument("--students", nargs="+", choices=get_args(CifarName), default=STUDENTS)
    parser.add_argument("--train-images", type=int, default=12_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rounding-images", type=int, default=6_000, help="one epoch of so many, with rounding")
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing for each student, all forms together")
    parser.add_argument("--min-speedup", type=float, default=1.5, help="below it the answer is: no gain, keep float32")
    parser.add_argument("--max-drop", type=float, default=0.01, help="of validation accuracy")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def _prepared(source: Path, folder: Path) -> PreparedData:
    if not (folder / "manifest.json").exists():
        print(f"preparing {source}", flush=True)
        prepare(DataSettings(source=ImageFolder(path=source), validation_fraction=0.1), folder)
    return load_prepared(folder)


def trained(name: CifarName, data: PreparedData, options: argparse.Namespace) -> tuple[Path, nn.Module]:
    """A network trained alone, from the newest checkpoint if there is one, and its float32 file."""
    train = _part(data.split("train"), options.train_images)
    views = ViewSettings(augmentation=PadCropFlip(), views_per_image=options.epochs)
    training = TrainingData(train, _part(data.split("validation"), 1000), views)
    settings = TrainSettings(
        epochs=options.epochs,
        batch_size=128,
        optimizer=SGD(learning_rate=0.2 if name.startswith(("resnet", "wrn")) else 0.1, weight_decay=5e-4),
        schedule=OneCycle(),
    )
    identity = fingerprint({"name": name, "images": len(train), "train": settings.model_dump(mode="json")})
    path = options.work / f"{name}_{identity[:8]}" / "seed_0" / "float32.onnx"
    state = new_training_state(_network(name, data), CrossEntropy(), training, settings=settings, teacher=None)
    checkpoints = CheckpointFolder(options.work / "checkpoints", identity)
    with checkpoints.locked():
        if (saved := checkpoints.load()) is not None:
            state.load_state_dict(saved)
        for report in train_epochs(state, training, settings=settings, seed=0):
            if isinstance(report, EpochReport):
                checkpoints.save(report.epoch, state.state_dict())
                print(f"{name}: epoch {report.epoch}/{settings.epochs}, {report.images_per_second:.0f} images/s, "
                      f"validation {report.validation_accuracy_top1:.2%}", flush=True)  # fmt: skip
    if not path.exists():
        export_onnx(
            state.evaluated.eval(),
            path,
            image_size=(data.manifest.height, data.manifest.width),
            settings=ExportSettings(),
            metadata={"name": name, "classes": list(data.manifest.classes)},
        )
    return path, state.evaluated.eval()


def trained_with_rounding(network: nn.Module, source: Path, data: PreparedData, options: argparse.Namespace) -> Path:
    """The 8-bit file of a network that trained on with its rounding for an epoch."""
    path = source.with_name(f"{FORM}_reduce_range_{options.rounding_images}.onnx")
    if path.exists():
        return path
    train, size = _part(data.split("train"), options.rounding_images), (data.manifest.height, data.manifest.width)
    calibration = _part(data.split("train"), 256).images(np.arange(256, dtype=np.int64)).numpy()
    training = TrainingData(train, _part(data.split("validation"), 1000), ViewSettings(augmentation=PadCropFlip()))
    settings = TrainSettings(epochs=1, batch_size=64, optimizer=SGD(learning_rate=0.01))
    rounding = quantization_aware(
        network, image_size=size, calibration=np.split(calibration, 4), settings=QatSettings(reduce_range=True)
    )
    state = new_training_state(rounding, KD(), training, settings=settings, teacher=OnlineTeacher(network))
    for report in train_epochs(state, training, settings=settings, seed=0):
        if isinstance(report, EpochReport):
            print(f"{source.parent.parent.name}: with rounding, {report.images_per_second:.0f} images/s, "
                  f"validation {report.validation_accuracy_top1:.2%}", flush=True)  # fmt: skip
    metadata: dict[str, Any] = {"name": path.stem, "classes": list(data.manifest.classes)}
    assert isinstance(state.evaluated, QatNetwork)
    export_quantization_aware(state.evaluated, path, image_size=size, settings=ExportSettings(), metadata=metadata)
    return path


def _network(name: CifarName, data: PreparedData) -> Network:
    manifest = data.manifest
    return build_network(
        Cifar(name=name),
        num_classes=len(manifest.classes),
        image_size=(manifest.height, manifest.width),
        statistics=Statistics(mean=manifest.mean, std=manifest.std),
    )


def _part(split: PreparedSplit, count: int) -> ArraySplit:
    """So many images of a split, drawn from all of it."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(split))[:count]).astype(np.int64)
    return ArraySplit(split.images(chosen).numpy(), split.labels[chosen])


def measured(
    name: str, source: Path, data: PreparedData, options: argparse.Namespace, *, given: Mapping[str, Path]
) -> dict[str, Any]:
    """Search forms of a file and score those that are kept on the test split."""
    began = time.monotonic()
    settings = SearchSettings(
        candidates=CANDIDATES,
        max_drop=options.max_drop,
        min_speedup=options.min_speedup,
        target=Target(threads=1, batch_size=1),
        min_seconds=options.seconds,
        num_validation_images=2500,
    )
    results = search_forms(
        source,
        calibration=data.split("train"),
        validation=data.split("validation"),
        settings=settings,
        output_folder=source.parent / "forms",
        given=given,
    )
    float32 = _answers(source, data.split("test"))
    forms = [_form(result, source.parent / "forms", float32, data) for result in results if result.form != FLOAT32]
    best = fastest(results)
    reference = results[0].measured
    assert reference is not None
    print(f"{name}: float32 {reference.latency_ms_p50:.3f} ms, {reference.size_bytes / 1e3:.0f} kB, "
          f"test {float32.accuracy:.2%}, searched in {time.monotonic() - began:.0f} s")  # fmt: skip
    for form in forms:
        _tell(form, is_best=form["form"] == best.form)
    return {
        "student": name,
        "float32": {
            "latency_ms": reference.latency_ms_p50,
            "size_bytes": reference.size_bytes,
            "accuracy_test": float32.accuracy,
        },
        "best": "no gain, keep float32" if best.form == FLOAT32 else best.form,
        "forms": forms,
    }


def _form(result: FormResult, folder: Path, float32: Answers, data: PreparedData) -> dict[str, Any]:
    facts: dict[str, Any] = {"form": result.form, "is_kept": result.is_kept, "reason": result.reason}
    if result.measured is not None:
        facts |= {
            "speed_ratio": result.measured.speedup,
            "size_ratio": 1 / result.measured.size_ratio,
            "drop_validation": result.measured.drop,
            "integer_layers": f"{result.measured.fusion.num_integer} of {result.measured.fusion.num_layers}",
        }
        if result.measured.saturation is not None:
            facts["drop_validation_without_vnni"] = result.measured.saturation.drop
    if result.file is not None:
        answers = _answers(folder / result.file, data.split("test"))
        lost = float32.is_right.astype(np.float64) - answers.is_right
        facts |= {
            "accuracy_test": answers.accuracy,
            "drop_test": float(lost.mean()),
            "drop_test_standard_error": float(lost.std() / np.sqrt(len(lost))),
        }
    return facts


def _answers(path: Path, test: PreparedSplit) -> Answers:
    predict = load_predictor(path, threads=os.cpu_count() or 1)
    answers = np.concatenate([predict(images.numpy()).argmax(axis=1) for images, _ in test.batches(256)])
    return Answers(answers == test.labels)


def _tell(form: dict[str, Any], *, is_best: bool) -> None:
    if "drop_test" not in form:
        print(f"  {form['form']}: {form['reason']}")
        return
    print(
        f"  {form['form']}: {form['speed_ratio']:.2f} times as fast, {form['size_ratio']:.2f} times smaller, loses "
        f"{100 * form['drop_test']:.2f} +- {100 * form['drop_test_standard_error']:.2f} points on test"
        + (" <- the fastest that is kept" if is_best else "")
    )


if __name__ == "__main__":
    main()
