"""A tiny learnable data set in memory and a tiny network, for tests of everything that trains."""

import numpy as np
import torch
from torch import nn

from compress.batches import TrainingData
from compress.data.prepared import ArraySplit
from compress.data.view_schedule import ViewSettings
from compress.data.views import PadCropFlip
from compress.methods import CrossEntropy, Method
from compress.teacher_logits import TeacherAnswers
from compress.training_state import TrainingState, TrainSettings, new_training_state

NUM_CLASSES = 3
VIEWS = ViewSettings(augmentation=PadCropFlip(pad=1, flip=True), views_per_image=4, seed=5)
SETTINGS = TrainSettings(epochs=3, batch_size=8, precision="float32", threads=1)


def split(num_images: int, seed: int) -> ArraySplit:
    """8x8 pictures; a class is a colour that dominates, with noise over it."""
    random = np.random.default_rng(seed)
    labels = np.arange(num_images, dtype=np.int64) % NUM_CLASSES
    pixels = random.integers(0, 120, (num_images, 8, 8, 3), dtype=np.uint8)
    pixels[np.arange(num_images), :, :, labels] += 60
    return ArraySplit(pixels, labels)


def data() -> TrainingData:
    """26 train images, so that the last batch of 8 is a smaller one, and 12 validation images."""
    return TrainingData(split(26, 0), split(12, 1), VIEWS)


def network(seed: int = 0) -> nn.Module:
    """Convolution, batch normalisation, dropout and a linear layer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, NUM_CLASSES),
        )  # fmt: skip


def state(
    settings: TrainSettings = SETTINGS,
    *,
    start: nn.Module | None = None,
    method: Method | None = None,
    teacher: TeacherAnswers | None = None,
) -> TrainingState:
    """A training that has not begun: the tiny network and cross-entropy unless told otherwise."""
    return new_training_state(start or network(), method or CrossEntropy(), data(), settings=settings, teacher=teacher)
