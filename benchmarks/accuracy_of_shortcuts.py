"""What storing a teacher's answers costs in accuracy: a small student on part of CIFAR-100, with paired seeds.

    python -m benchmarks.accuracy_of_shortcuts --archive cifar100.zip [--variants online float16 uint8]

The archive holds `train/<class>/*.png` and `test/<class>/*.png`. A teacher is trained on the first classes; then each
seed trains one student for each variant, and variants of one seed start from the same weights and see the same images
in the same order and views. A variant's difference from `online` (the teacher asked at every step, in float32) is
therefore paired; its mean stands with a 95 % interval over seeds. Prints a table and one line of JSON; writes
results/accuracy_of_shortcuts.json. With the defaults it takes about five minutes on two cores.

    online        the teacher runs at every step, in float32
    float16       its answers stored as float16, a view for every epoch
    uint8         stored in one byte for a logit
    bfloat16      stored as float16 by a teacher that computes in bfloat16
    few_views     stored as float16, a quarter as many views as epochs: what is lost here is augmentation
"""

from __future__ import annotations

import argparse
import io
import json
import math
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from benchmarks.training import machine
from compress.batches import TrainingData
from compress.data.prepared import ArraySplit
from compress.data.view_schedule import ViewSettings
from compress.data.views import PadCropFlip
from compress.device import place
from compress.errors import DataError
from compress.logit_store import read_manifest
from compress.methods import KD, CrossEntropy, Method
from compress.models import Cifar, Cnn, ModelSource, Network, Statistics, build_network
from compress.optimization import SGD, OneCycle
from compress.teacher_logits import OnlineTeacher, TeacherAnswers, TeacherLogitsSettings, open_teacher_logits
from compress.teacher_logits_writer import Question, new_manifest, sample_views, write_teacher_logits
from compress.teacher_pass import prepare_pass
from compress.train import train_epochs
from compress.training_state import EpochReport, TrainSettings, new_training_state

STATISTICS = Statistics(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))
T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Of Student's t distribution, by the number of seeds."""
VARIANTS = ("online", "float16", "uint8", "bfloat16", "few_views")
RESULTS = Path(__file__).parent / "results" / "accuracy_of_shortcuts.json"


class Size(NamedTuple):
    """How much is trained."""

    num_classes: int
    per_class: int
    teacher_epochs: int
    epochs: int
    num_seeds: int


def read_part(archive: Path, size: Size) -> tuple[ArraySplit, ArraySplit]:
    """Train and test images of the first classes.

    Raises:
        DataError: the archive is missing or holds something else.
    """
    if not archive.is_file():
        raise DataError(f"{archive} is missing; name an archive of CIFAR-100 as class folders with --archive")
    with zipfile.ZipFile(archive) as opened:
        names = sorted(name for name in opened.namelist() if name.endswith(".png"))
        classes = sorted({name.split("/")[-2] for name in names})[: size.num_classes]
        splits = [_split(opened, names, classes, part, size.per_class) for part in ("train", "test")]
    return splits[0], splits[1]


def _split(opened: zipfile.ZipFile, names: list[str], classes: list[str], part: str, most: int) -> ArraySplit:
    pixels: list[np.ndarray] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        for file in [each for each in names if f"{part}/{name}/" in each][:most]:
            pixels.append(np.asarray(Image.open(io.BytesIO(opened.read(file))).convert("RGB")))
            labels.append(label)
    if not pixels:
        raise DataError(f"the archive has no {part} images; it should hold {part}/<class>/*.png")
    return ArraySplit(np.stack(pixels), np.asarray(labels, dtype=np.int64))


def network(model: ModelSource, num_classes: int, seed: int) -> Network:
    """A fresh network."""
    torch.manual_seed(seed)
    return build_network(model, num_classes=num_classes, image_size=(32, 32), statistics=STATISTICS)


def trained(start: Network, method: Method, data: TrainingData, epochs: int, seed: int, **teacher: Any) -> EpochReport:
    """Train to the end; the last epoch's report."""
    optimizer = SGD(learning_rate=0.1, weight_decay=5e-4)
    settings = TrainSettings(
        epochs=epochs, batch_size=64, optimizer=optimizer, schedule=OneCycle(), precision="float32"
    )
    state = new_training_state(start, method, data, settings=settings, **teacher)
    reports = list(train_epochs(state, data, settings=settings, seed=seed))
    last = reports[-1]
    assert isinstance(last, EpochReport)
    return last


def stored(teacher: Network, data: TrainingData, folder: Path, size: Size, **form: Any) -> TeacherAnswers:
    """The teacher's answers, written and opened."""
    precision = form.pop("precision", "float32")
    samples = sample_views(data.train, data.views, num_samples=64, device=torch.device("cpu"))
    asked = prepare_pass(teacher, samples, precision=precision)
    question = Question("t", "d", data.views, num_images=len(data.train), num_classes=size.num_classes)
    manifest = new_manifest(TeacherLogitsSettings(precision=precision, **form), question, asked)
    for _ in write_teacher_logits(folder, data.train, asked, manifest=manifest):
        pass
    return open_teacher_logits(folder, read_manifest(folder))


def variants(
    names: list[str], teacher: Network, data: TrainingData, folder: Path, size: Size
) -> dict[str, tuple[TrainingData, Callable[[], TeacherAnswers]]]:
    """What a student of each variant sees and asks."""
    few = data.views.model_copy(update={"views_per_image": max(1, size.epochs // 4)})
    fewer = TrainingData(data.train, data.validation, few)
    forms: dict[str, dict[str, Any]] = {
        "float16": {"dtype": "float16"},
        "uint8": {"dtype": "uint8"},
        "bfloat16": {"dtype": "float16", "precision": "bfloat16"},
        "few_views": {"dtype": "float16"},
    }
    found: dict[str, tuple[TrainingData, Callable[[], TeacherAnswers]]] = {}
    for name in names:
        seen = fewer if name == "few_views" else data
        if name == "online":
            found[name] = seen, lambda: OnlineTeacher(teacher, "float32")
        else:
            answers = stored(teacher, seen, folder / name, size, **forms[name])
            found[name] = seen, lambda answers=answers: answers
    return found


def compare(names: list[str], size: Size, archive: Path) -> dict[str, Any]:
    """Train teacher and students; accuracies by variant and seed."""
    train, test = read_part(archive, size)
    views = ViewSettings(augmentation=PadCropFlip(), views_per_image=size.epochs)
    data = TrainingData(train, test, views)
    teacher = place(network(Cifar(name="resnet20"), size.num_classes, seed=0), torch.device("cpu"))
    own = trained(teacher, CrossEntropy(), data, size.teacher_epochs, seed=0)
    print(f"teacher: {own.validation_accuracy_top1:.2%} on {len(test)} test images", flush=True)
    accuracies: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        asked = variants(names, teacher, data, Path(folder), size)
        for seed in range(size.num_seeds):
            for name, (seen, answers) in asked.items():
                student = network(Cnn(channels=(16, 32, 64)), size.num_classes, seed=seed)
                report = trained(student, KD(), seen, size.epochs, seed, teacher=answers())
                accuracies[name].append(report.validation_accuracy_top1)
                print(f"seed {seed} {name:10} {report.validation_accuracy_top1:.2%}", flush=True)
    return {"teacher_accuracy": own.validation_accuracy_top1, "num_test": len(test), "accuracies": accuracies}


def summary(accuracies: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Mean accuracy of each variant, and its mean difference from `online` with half the 95 % interval."""
    found: dict[str, dict[str, float]] = {}
    for name, values in accuracies.items():
        differences = [ours - theirs for ours, theirs in zip(values, accuracies["online"], strict=True)]
        spread = statistics.stdev(differences) if len(differences) > 1 else math.nan
        half = T_975.get(len(differences), math.nan) * spread / math.sqrt(len(differences))
        found[name] = {
            "accuracy": round(statistics.mean(values), 4),
            "difference": round(statistics.mean(differences), 4),
            "half_interval": round(half, 4),
        }
    return found


def main() -> None:
    """Run everything, print it, keep it."""
    parser = argparse.ArgumentParser(description="What storing a teacher's answers costs in accuracy.")
    parser.add_argument("--archive", type=Path, required=True, help="CIFAR-100 as class folders in a zip file")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["online", "float16"])
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--per-class", type=int, default=500)
    parser.add_argument("--teacher-epochs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3, choices=range(2, 11))
    given = parser.parse_args()
    names = list(dict.fromkeys(["online", *given.variants]))
    size = Size(given.classes, given.per_class, given.teacher_epochs, given.epochs, given.seeds)
    started = time.monotonic()
    try:
        found = compare(names, size, given.archive)
    except DataError as error:
        raise SystemExit(str(error)) from error
    rows = summary(found["accuracies"])
    for name, row in rows.items():
        interval = "" if name == "online" else f", from online {row['difference']:+.2%} ± {row['half_interval']:.2%}"
        print(f"{name:10} {row['accuracy']:.2%}{interval}")
    seconds = round(time.monotonic() - started)
    result = {"variants": rows, **found, "size": size._asdict(), "seconds": seconds, "machine": machine()}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
