"""What each stage does with a data set, as library calls in a process of its own: what `memory` measures.

Imports stand inside the functions, so that a stage takes the memory of what it uses and of nothing else.
"""

from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

STATISTICS: dict[str, Any] = {"mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)}
NUM_STEPS = 6
"""Of training."""


class Case(NamedTuple):
    """A data set to run the stages on, and the networks."""

    name: str
    num_images: int
    num_classes: int
    pixels: int
    """Side of the stored pictures."""
    image_size: int
    """Side of what networks see."""
    teacher: dict[str, Any]
    student: dict[str, Any]

    @property
    def on_disk(self) -> bool:
        return self.image_size > 64


def cases(num_images: int, num_photos: int) -> list[Case]:
    """Small images as decoded arrays; photographs, and four times as many."""
    big, small = {"source": "cifar", "name": "resnet32x4"}, {"source": "cifar", "name": "resnet8x4"}
    wide, narrow = {"source": "cnn", "channels": [16, 32, 64]}, {"source": "cnn", "channels": [8, 8, 16]}
    photos = [Case(f"photos_{number}", number, 4, 320, 128, wide, narrow) for number in (num_photos, 4 * num_photos)]
    return [Case("arrays", num_images, 100, 32, 32, big, small), *photos]


def write_pictures(case: Case, path: Path) -> None:
    """A zip archive of class folders; noise over blocks, so that photographs compress as real ones do."""
    from PIL import Image

    random = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number in range(case.num_images):
            coarse = random.integers(0, 256, (case.pixels // 8, case.pixels // 8, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize((case.pixels, case.pixels))
            content = io.BytesIO()
            picture.save(content, "JPEG" if case.on_disk else "PNG", **({} if case.on_disk else {"compress_level": 1}))
            name = f"{number % case.num_classes:03}/{number:06}.{'jpg' if case.on_disk else 'png'}"
            archive.writestr(name, content.getvalue())


def prepare(case: Case, folder: Path) -> None:
    from compress.data import DataSettings
    from compress.data.prepare import prepare

    settings: dict[str, Any] = {
        "source": {"name": "image_folder", "path": str(folder / "pictures.zip")},
        "validation_fraction": 0.006 if not case.on_disk else 0.4,  # a whole batch, however few photographs
        "test_fraction": 0.02 if not case.on_disk else 0.1,
    }
    if case.on_disk:
        settings |= {"image_size": case.image_size, "storage": "encoded"}
    prepare(DataSettings.model_validate(settings), folder / "prepared")


def teacher(case: Case, folder: Path) -> None:
    from compress.methods import CrossEntropy

    _train_some(case, folder, _network(case, case.teacher), CrossEntropy(), None)


def teacher_logits(case: Case, folder: Path) -> None:
    """The large teacher begins to write; five batches."""
    asked, manifest, data, work = _store(case, folder, case.teacher, work=folder / "begun")
    from compress.teacher_logits_writer import begin_writing, write_chunks

    begin_writing(work, folder / "never", manifest)
    for _ in itertools.islice(write_chunks(work, data.train, asked, manifest=manifest), 5):
        pass


def whole_store(case: Case, folder: Path) -> None:
    """A small teacher writes all of a store, which is then hashed and opened."""
    from compress.logit_store import read_manifest
    from compress.teacher_logits import open_teacher_logits
    from compress.teacher_logits_writer import write_teacher_logits

    network = {"source": "cnn", "channels": [8]}
    asked, manifest, data, work = _store(case, folder, network, work=folder / "partial")
    for _ in write_teacher_logits(folder / "store", data.train, asked, manifest=manifest, work=work):
        pass
    open_teacher_logits(folder / "store", read_manifest(folder / "store"))


def distill(case: Case, folder: Path) -> None:
    from compress.logit_store import read_manifest
    from compress.methods import WTTM
    from compress.teacher_logits import open_teacher_logits

    answers = open_teacher_logits(folder / "store", read_manifest(folder / "store"))
    _train_some(case, folder, _network(case, case.student), WTTM(), answers)


def distill_online(case: Case, folder: Path) -> None:
    from compress.methods import WTTM
    from compress.teacher_logits import OnlineTeacher

    _train_some(case, folder, _network(case, case.student), WTTM(), OnlineTeacher(_network(case, case.teacher)))


def export(case: Case, folder: Path) -> None:
    from compress.export import ExportSettings, export_onnx

    classes = [str(number) for number in range(case.num_classes)]
    size = (case.image_size, case.image_size)
    for name, model in (("teacher", case.teacher), ("student", case.student)):
        export_onnx(
            _network(case, model),
            folder / f"{name}.onnx",
            image_size=size,
            settings=ExportSettings(),
            metadata={"classes": classes},  # pyright: ignore[reportArgumentType]
        )


def quantize(case: Case, folder: Path) -> None:
    from compress.quantize import Int8Static

    images = next(iter(_data(case, folder).train.batches(64)))[0].numpy()
    Int8Static()(folder / "student.onnx", folder / "student.int8.onnx", calibration=[images])


def evaluate(case: Case, folder: Path) -> None:
    from compress.data.prepared import load_prepared
    from compress.evaluate import evaluate
    from compress.runtime import load_predictor

    split = load_prepared(folder / "prepared").split("test")
    predict = load_predictor(folder / "student.onnx")
    batches = ((images.numpy(), labels.numpy()) for images, labels in split.batches(256))
    evaluate(predict, batches, num_classes=case.num_classes)


STAGES: dict[str, Callable[[Case, Path], None]] = {
    function.__name__: function
    for function in (
        prepare,
        teacher,
        teacher_logits,
        whole_store,
        distill,
        distill_online,
        export,
        quantize,
        evaluate,
    )
}


def _data(case: Case, folder: Path) -> Any:
    from compress.batches import TrainingData
    from compress.data.prepared import load_prepared
    from compress.data.view_schedule import ViewSettings
    from compress.data.views import PadCropFlip, RandomResizedCropFlip

    prepared = load_prepared(folder / "prepared")
    augmentation = RandomResizedCropFlip() if case.on_disk else PadCropFlip()
    views = ViewSettings(augmentation=augmentation, views_per_image=2 if case.on_disk else 4)
    return TrainingData(prepared.split("train"), prepared.split("validation"), views)


def _network(case: Case, model: dict[str, Any]) -> Any:
    from pydantic import TypeAdapter

    from compress.models import ModelSource, Statistics, build_network

    source: Any = TypeAdapter(ModelSource).validate_python(model)
    size = (case.image_size, case.image_size)
    return build_network(source, num_classes=case.num_classes, image_size=size, statistics=Statistics(**STATISTICS))


def _store(case: Case, folder: Path, model: dict[str, Any], *, work: Path) -> Any:
    import torch

    from compress.device import place
    from compress.teacher_logits import TeacherLogitsSettings
    from compress.teacher_logits_writer import Question, new_manifest, sample_views
    from compress.teacher_pass import prepare_pass

    data, cpu = _data(case, folder), torch.device("cpu")
    asked = prepare_pass(
        place(_network(case, model), cpu), sample_views(data.train, data.views, num_samples=64, device=cpu)
    )
    question = Question("t", "d", data.views, num_images=len(data.train), num_classes=case.num_classes)
    return asked, new_manifest(TeacherLogitsSettings(), question, asked), data, work


def _train_some(case: Case, folder: Path, network: Any, method: Any, answers: Any) -> None:
    """A few steps, and a validation."""
    from compress import train
    from compress.training_state import TrainSettings, new_training_state

    data, settings = _data(case, folder), TrainSettings(epochs=1, batch_size=64, precision="auto")
    state = new_training_state(network, method, data, settings=settings, teacher=answers)
    train.STEPS_PER_REPORT = NUM_STEPS
    next(train.train_epochs(state, data, settings=settings, seed=0))
    train.validate(state.evaluated, data.validation)
