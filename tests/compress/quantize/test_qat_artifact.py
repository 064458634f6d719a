"""A network that rounds survives being saved, and nothing else passes for one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from compress.artifact import ModelCard, load_model, save_model
from compress.errors import ArtifactError
from compress.models import Cnn, Network, Statistics, build_network
from compress.models.checkpoint import WEIGHTS_FILE
from compress.quantize.qat import QatNetwork, QatSettings, quantization_aware
from compress.quantize.qat_artifact import load_quantization_aware, save_quantization_aware

SIZE = (8, 8)
STATISTICS = Statistics(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def plain() -> Network:
    torch.manual_seed(0)
    return build_network(Cnn(channels=(4, 8)), num_classes=3, image_size=SIZE, statistics=STATISTICS).eval()


def card() -> ModelCard:
    return ModelCard(
        architecture=Cnn(channels=(4, 8)),
        classes=("a", "b", "c"),
        height=SIZE[0],
        width=SIZE[1],
        mean=STATISTICS.mean,
        std=STATISTICS.std,
        preprocessing={},
        num_parameters=1,
        flops=1,
        fingerprint="0",
    )


@pytest.fixture(scope="module")
def network() -> QatNetwork:
    images = np.random.default_rng(0).integers(0, 256, (16, *SIZE, 3), dtype=np.uint8)
    settings = QatSettings(reduce_range=True, ranges="observed")
    return quantization_aware(plain(), image_size=SIZE, calibration=[images], settings=settings).eval()


@pytest.fixture
def folder(network: QatNetwork, tmp_path: Path) -> Path:
    save_quantization_aware(tmp_path / "saved", network, card())
    return tmp_path / "saved"


def test_a_saved_network_answers_bit_for_bit_and_knows_how_it_rounds(network: QatNetwork, folder: Path) -> None:
    loaded, told = load_quantization_aware(folder)
    images = torch.rand(5, 3, *SIZE)
    with torch.no_grad():
        assert torch.equal(loaded(images), network(images))
    assert not loaded.training
    assert (loaded.settings, loaded.num_calibration_images) == (network.settings, 16)
    assert told.weights_sha256 is not None
    assert told.architecture == card().architecture


def test_the_same_network_gives_the_same_bytes(network: QatNetwork, folder: Path, tmp_path: Path) -> None:
    save_quantization_aware(tmp_path / "again", network, card())
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_a_network_in_float_is_refused_and_so_is_the_other_way_round(folder: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "plain", plain(), card())
    with pytest.raises(ArtifactError, match="does not round; load it with load_model"):
        load_quantization_aware(tmp_path / "plain")
    with pytest.raises(ArtifactError, match="cannot be rebuilt"):
        load_model(folder)


def test_a_changed_file_is_refused_by_name(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS_FILE).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(ArtifactError, match="is not the file its card describes"):
        load_quantization_aware(folder)
