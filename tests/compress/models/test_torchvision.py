"""Networks of torchvision: published weights from its cache, and without a network connection."""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path

import pytest
import torch
from torchvision import models

from compress.errors import ModelError
from compress.models import Network, Statistics, Torchvision, build_network

STATISTICS = Statistics(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
IMAGENET = Statistics(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SQUEEZENET = Torchvision(name="squeezenet1_1", weights="IMAGENET1K_V1")


def build(source: Torchvision, *, num_classes: int = 1000, side: int = 32, replace_head: bool = False) -> Network:
    return build_network(
        source, num_classes=num_classes, image_size=(side, side), statistics=STATISTICS, replace_head=replace_head
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch's hub, on a machine whose connection is down."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    # The opener remembers the proxies of its first use.
    monkeypatch.setattr(urllib.request, "_opener", None)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_published_weights_bring_their_statistics(cache: Path) -> None:
    stored = models.squeezenet1_1().state_dict()
    torch.save(stored, cache / "squeezenet1_1-b8a52dc0.pth")
    network = build(SQUEEZENET)
    state = network.state_dict()
    assert all(torch.equal(state[f"backbone.model.{name}"], tensor) for name, tensor in stored.items())
    assert network.statistics == IMAGENET


def test_published_weights_with_other_class_count(cache: Path) -> None:
    stored = models.squeezenet1_1().state_dict()
    torch.save(stored, cache / "squeezenet1_1-b8a52dc0.pth")
    with pytest.raises(ModelError, match=r"SqueezeNet1_1_Weights\.IMAGENET1K_V1 has 1000 classes, the data has 10"):
        build(SQUEEZENET, num_classes=10)
    state = build(SQUEEZENET, num_classes=10, replace_head=True).state_dict()
    assert state["backbone.model.classifier.1.weight"].shape[0] == 10
    assert torch.equal(state["backbone.model.features.0.weight"], stored["features.0.weight"])


def test_densenets_old_layer_names_are_understood(cache: Path) -> None:
    stored = models.densenet121().state_dict()
    old = {}
    for name, tensor in stored.items():
        for new_part, old_part in (
            ("norm1.", "norm.1."),
            ("norm2.", "norm.2."),
            ("conv1.", "conv.1."),
            ("conv2.", "conv.2."),
        ):
            if "denselayer" in name:
                name = name.replace(new_part, old_part)
        old[name] = tensor
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, cache / "densenet121-a639ec97.pth")
    state = build(Torchvision(name="densenet121", weights="DEFAULT")).state_dict()
    assert all(torch.equal(state[f"backbone.model.{name}"], tensor) for name, tensor in stored.items())


class Attack:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_malicious_file_in_the_cache_is_not_run(cache: Path) -> None:
    marker = cache / "ran"
    torch.save({"classifier.1.weight": Attack(f"touch {marker}")}, cache / "squeezenet1_1-b8a52dc0.pth")
    with pytest.raises(ModelError, match=r"IMAGENET1K_V1 cannot be loaded"):
        build(SQUEEZENET)
    assert not marker.exists()


def test_connection_out_of_reach_asks_for_a_local_copy(cache: Path) -> None:
    with pytest.raises(
        ModelError, match=r"cannot be loaded .* local copy of squeezenet1_1-b8a52dc0\.pth as `checkpoint`"
    ):
        build(SQUEEZENET)
    assert not list(cache.iterdir())


def test_unknown_weights_list_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"no weights 'V3' for resnet50; it has IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"):
        build(Torchvision(name="resnet50", weights="V3"))


def test_networks_with_auxiliary_outputs_are_not_offered() -> None:
    with pytest.raises(ModelError, match="no model 'inception_v3'"):
        build(Torchvision(name="inception_v3"))


def test_transformer_is_built_for_the_size_of_the_images() -> None:
    state = build(Torchvision(name="vit_b_32"), side=64).state_dict()
    assert state["backbone.model.encoder.pos_embedding"].shape[1] == 5
    with pytest.raises(ModelError, match=r"vit_b_32 cannot take images of 40x40 pixels \(Input shape indivisible"):
        build(Torchvision(name="vit_b_32"), side=40)
    with pytest.raises(ModelError, match="square"):
        build_network(Torchvision(name="vit_b_32"), num_classes=10, image_size=(64, 32), statistics=STATISTICS)
