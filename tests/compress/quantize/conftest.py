"""Two small networks that know handwritten digits, trained in seconds and exported once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from compress.data.prepared import ArraySplit
from compress.export import ExportSettings, export_onnx
from compress.models import Cifar, Cnn, Network, Statistics, build_network
from compress.models.source import Source

CLASSES = tuple("0123456789")
SIZE = (8, 8)
NUM_TRAIN = 1200


class Trained(NamedTuple):
    """A network and its float32 file."""

    network: Network
    path: Path


@pytest.fixture(scope="session")
def train_split() -> ArraySplit:
    return _splits()[0]


@pytest.fixture(scope="session")
def validation_split() -> ArraySplit:
    return _splits()[1]


@pytest.fixture(scope="session")
def validation_images(validation_split: ArraySplit) -> np.ndarray:
    return validation_split.images(np.arange(len(validation_split), dtype=np.int64)).numpy()


@pytest.fixture(scope="session")
def cnn(tmp_path_factory: pytest.TempPathFactory, train_split: ArraySplit) -> Trained:
    """Three convolutions and a linear layer."""
    return _trained(Cnn(channels=(8, 16, 32)), train_split, tmp_path_factory.mktemp("cnn"), epochs=4)


@pytest.fixture(scope="session")
def residual(tmp_path_factory: pytest.TempPathFactory, train_split: ArraySplit) -> Trained:
    """Nine convolutions with shortcuts."""
    return _trained(Cifar(name="resnet8"), train_split, tmp_path_factory.mktemp("residual"), epochs=2)


def calibration(split: ArraySplit, *, num_images: int = 64, batch_size: int = 25) -> Iterator[np.ndarray]:
    """A stream of batches, the last one smaller."""
    for start in range(0, num_images, batch_size):
        yield split.images(np.arange(start, min(start + batch_size, num_images), dtype=np.int64)).numpy()


def _splits() -> tuple[ArraySplit, ArraySplit]:
    digits = load_digits()
    pixels = np.repeat(np.clip(digits.images * 16, 0, 255).astype(np.uint8)[..., None], 3, axis=3)
    order = np.random.default_rng(0).permutation(len(pixels))
    pixels, labels = pixels[order], digits.target[order].astype(np.int64)
    return ArraySplit(pixels[:NUM_TRAIN], labels[:NUM_TRAIN]), ArraySplit(pixels[NUM_TRAIN:], labels[NUM_TRAIN:])


def _trained(source: Source, split: ArraySplit, folder: Path, *, epochs: int) -> Trained:
    statistics = Statistics(mean=(0.31, 0.3, 0.29), std=(0.37, 0.38, 0.36))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(source, num_classes=len(CLASSES), image_size=SIZE, statistics=statistics)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
        for _ in range(epochs):
            for chosen in torch.randperm(len(split)).split(64):
                images = split.images(chosen.numpy()).permute(0, 3, 1, 2).float() / 255
                loss = F.cross_entropy(network(images), torch.from_numpy(split.labels[chosen.numpy()]))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    path = folder / "float32.onnx"
    export_onnx(
        network.eval(),
        path,
        image_size=SIZE,
        settings=ExportSettings(),
        metadata={"classes": list(CLASSES), "name": "digits", "metrics": {"accuracy": 0.9}},
    )
    return Trained(network, path)
