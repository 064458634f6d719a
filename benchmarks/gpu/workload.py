"""What is trained on a GPU to measure it: networks, data of random pixels, and clocks that wait for the device."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peak import synchronize
from compress.batches import TrainingData
from compress.data.prepared import ArraySplit
from compress.data.view_schedule import ViewSettings
from compress.data.views import Augmentation, NoAugmentation, PadCropFlip
from compress.device import place
from compress.logit_store import read_manifest
from compress.methods import WTTM, Method
from compress.models import Cifar, Network, Statistics, Torchvision, build_network
from compress.models.cifar import CifarName
from compress.optimization import SGD, Step
from compress.teacher_logits import StoredTeacher, TeacherAnswers, TeacherLogitsSettings, open_teacher_logits
from compress.teacher_logits_writer import Question, new_manifest, sample_views, write_teacher_logits
from compress.teacher_pass import TeacherPass, prepare_pass
from compress.train import train_together
from compress.training_state import EpochReport, Trainee, TrainSettings, new_training_state

STATISTICS = Statistics(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))
METHOD = WTTM(gamma=0.1, beta=3.0)
EPOCHS = 240


@dataclass(frozen=True)
class Scale:
    """How much is measured, and where."""

    device: torch.device
    student: CifarName = "resnet8x4"
    teacher: CifarName = "resnet32x4"
    num_train: int = 50_000
    num_validation: int = 10_000
    num_classes: int = 100
    num_views: int = 8
    """Stored; the recipe stores 162, and a step costs the same."""
    batch_size: int = 64
    num_timed: int = 200
    """Steps between two looks at the clock."""
    imagenet_pair: tuple[str, str] = ("resnet34", "resnet18")
    imagenet_batch: int = 1024
    imagenet_size: int = 224
    imagenet_steps: int = 8
    """Of an epoch."""
    peak_size: int = 8192
    """Side of the matrices whose product is timed."""


def quick(device: torch.device) -> Scale:
    """Everything once, on little data with tiny networks: shows that it runs."""
    return Scale(
        device, student="resnet8", teacher="resnet8", num_train=80, num_validation=32, num_classes=4, num_views=2,
        batch_size=32, num_timed=2, imagenet_pair=("resnet18", "resnet18"), imagenet_batch=4, imagenet_size=32,
        imagenet_steps=2, peak_size=256,
    )  # fmt: skip


def cifar_network(name: CifarName, scale: Scale, seed: int = 0) -> Network:
    """A fresh network of the literature, on the CPU."""
    torch.manual_seed(seed)
    source = Cifar(name=name)
    return build_network(source, num_classes=scale.num_classes, image_size=(32, 32), statistics=STATISTICS)


def imagenet_network(name: str, scale: Scale) -> Network:
    """A fresh network of torchvision's."""
    torch.manual_seed(0)
    size = (scale.imagenet_size, scale.imagenet_size)
    return build_network(Torchvision(name=name), num_classes=1000, image_size=size, statistics=STATISTICS)


def random_data(num_train: int, num_validation: int, size: int, num_classes: int, views: ViewSettings) -> TrainingData:
    """Random pixels; labels go round."""
    random = np.random.default_rng(0)

    def split(count: int) -> ArraySplit:
        pixels = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        return ArraySplit(pixels, np.arange(count, dtype=np.int64) % num_classes)

    return TrainingData(split(num_train), split(num_validation), views)


def cifar_data(scale: Scale, augmentation: Augmentation | None = None) -> TrainingData:
    """As large as CIFAR-100."""
    views = ViewSettings(augmentation=augmentation or PadCropFlip(), views_per_image=scale.num_views)
    return random_data(scale.num_train, scale.num_validation, 32, scale.num_classes, views)


def imagenet_data(scale: Scale) -> TrainingData:
    """An epoch of a few batches."""
    views = ViewSettings(augmentation=NoAugmentation(), views_per_image=1)
    num_train = scale.imagenet_batch * scale.imagenet_steps
    return random_data(num_train, scale.imagenet_batch // 4, scale.imagenet_size, 1000, views)


def teacher_pass(network: Network, data: TrainingData, device: torch.device, precision: Any = "float32") -> TeacherPass:
    """A network, folded, ready to be asked."""
    samples = sample_views(data.train, data.views, num_samples=16, device=device)
    return prepare_pass(place(network, device), samples, precision=precision)


def stored_teacher(folder: Path, asked: TeacherPass, data: TrainingData, scale: Scale, **changes: Any) -> StoredTeacher:
    """The answers to all views, written and opened as the pipeline does it."""
    question = Question("t", "d", data.views, num_images=len(data.train), num_classes=scale.num_classes)
    manifest = new_manifest(TeacherLogitsSettings(**changes), question, asked)
    for _ in write_teacher_logits(folder, data.train, asked, manifest=manifest):
        pass
    return open_teacher_logits(folder, read_manifest(folder))


def recipe(scale: Scale, **changes: Any) -> TrainSettings:
    """The published schedule."""
    settings = TrainSettings(
        epochs=EPOCHS,
        batch_size=scale.batch_size,
        optimizer=SGD(learning_rate=0.05, momentum=0.9, weight_decay=5e-4),
        schedule=Step(milestones=(150, 180, 210)),
        device="cpu" if scale.device.type == "cpu" else "cuda",
    )
    return settings.model_copy(update=changes)


def trainee(
    network: Network,
    data: TrainingData,
    settings: TrainSettings,
    *,
    teacher: TeacherAnswers | None,
    method: Method = METHOD,
) -> Trainee:
    """A student that has not begun."""
    return Trainee(new_training_state(network, method, data, settings=settings, teacher=teacher), settings)


def epoch_seconds(
    trainees: Sequence[Trainee], data: TrainingData, device: torch.device, *, seconds: float, most: int = EPOCHS
) -> list[float]:
    """Wall seconds of each epoch, validation included, until the time or the epochs are over; at least two."""
    taken: list[float] = []
    reports = train_together(trainees, data, seed=0)
    begun = started = time.monotonic()
    for number, report in reports:
        if isinstance(report, EpochReport) and number == len(trainees) - 1:
            synchronize(device)
            now = time.monotonic()
            taken.append(now - started)
            started = now
            if len(taken) >= most or (len(taken) >= 2 and now - begun + taken[-1] > seconds):
                break
    reports.close()  # type: ignore[attr-defined]  an iterator by its annotation; lets go of recordings and data
    return taken


def seconds_per_call(function: Callable[[], object], device: torch.device, *, rounds: int) -> float:
    """Mean over rounds, after three that are not counted."""
    for _ in range(3):
        function()
    synchronize(device)
    started = time.perf_counter()
    for _ in range(rounds):
        function()
    synchronize(device)
    return (time.perf_counter() - started) / rounds


@contextmanager
def noted_warnings() -> Iterator[list[str]]:
    """Collect warnings instead of printing them."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
        messages += [str(each.message).splitlines()[0] for each in caught]
