"""What the networks of the Tf-KD code base have of their own; counts, keys and values stand in test_cifar.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compress.errors import ModelError
from compress.models import Backbone, Cifar, Statistics, build_network
from compress.models.cifar import NETWORKS, CifarName

STATISTICS = Statistics(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
SMALL: tuple[CifarName, ...] = ("tfkd_mobilenetv2", "tfkd_shufflenetv2", "tfkd_googlenet", "tfkd_densenet121")
ALL: tuple[CifarName, ...] = (*SMALL, "tfkd_resnet18")


def build(name: CifarName, *, num_classes: int = 100, side: int = 32) -> Backbone:
    return NETWORKS[name](num_classes, (side, side))


def last_layer(network: Backbone) -> nn.Module:
    return [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]


@pytest.mark.parametrize("name", ALL)
def test_pooled_feature_is_the_mean_of_the_last_map_and_leads_to_the_logits(name: CifarName) -> None:
    network = build(name).eval()
    images = torch.rand(2, 3, 32, 32)
    seen: list[Tensor] = []
    last_layer(network).register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    with torch.no_grad():
        logits, features = network.answer(images)
        torch.testing.assert_close(features.pooled, features.last_map.mean((2, 3)))
        assert torch.equal(network(images), logits)
    assert torch.equal(seen[0].flatten(1), features.pooled)


@pytest.mark.parametrize("name", ALL)
def test_maps_go_from_the_stem_to_small_ones(name: CifarName) -> None:
    with torch.no_grad():
        sides = [maps.shape[-1] for maps in build(name).eval().answer(torch.rand(1, 3, 32, 32)).features.maps]
    assert sides[0] >= 32
    assert sides == sorted(sides, reverse=True)
    assert sides[-1] in (4, 5, 8)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("side", [8, 48])
def test_other_image_sizes_work(name: CifarName, side: int) -> None:
    network = build(name, num_classes=5, side=side).eval()
    with torch.no_grad():
        assert network(torch.rand(2, 3, side, side)).shape == (2, 5)


def test_densenet_names_the_size_it_needs() -> None:
    with pytest.raises(ModelError, match=r"at least 8x8 pixels, got 7x32"):
        build_network(Cifar(name="tfkd_densenet121"), num_classes=10, image_size=(7, 32), statistics=STATISTICS)


def test_googlenet_keeps_the_large_epsilons_of_the_public_code() -> None:
    epsilons = [module.eps for module in build("tfkd_googlenet").modules() if isinstance(module, nn.BatchNorm2d)]
    assert [epsilon for epsilon in epsilons if epsilon > 1] == [32, 96, 48, 64, 64, 64, 128, 128, 128]


def test_googlenet_drops_features_while_it_is_trained_only() -> None:
    network, images = build("tfkd_googlenet"), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        trained = network.train().answer(images).features.pooled
        evaluated = network.eval().answer(images).features
    # 2 x 1024 draws at 0.4 leave 0.011 of deviation; five of them are far from an accident.
    assert float((trained == 0).float().mean()) == pytest.approx(0.4, abs=0.055)
    assert torch.equal(evaluated.pooled, evaluated.last_map.mean((2, 3)))


@pytest.mark.parametrize("name", ["tfkd_mobilenetv2", "tfkd_shufflenetv2"])
def test_a_checkpoint_of_other_classes_gets_a_fresh_last_layer(name: CifarName, tmp_path: Path) -> None:
    public = build(name)
    path = tmp_path / "best.pth.tar"
    torch.save({"epoch": 200, "state_dict": public.state_dict(), "optim_dict": {}}, path)
    model = Cifar(name=name, checkpoint=path)
    network = build_network(model, num_classes=7, image_size=(32, 32), statistics=STATISTICS, replace_head=True)
    assert torch.equal(network.backbone.state_dict()["pre.0.weight"], public.state_dict()["pre.0.weight"])
    assert network.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 7)
    with pytest.raises(ModelError, match="has 100 classes, the data has 7"):
        build_network(model, num_classes=7, image_size=(32, 32), statistics=STATISTICS)


@pytest.mark.parametrize("name", SMALL)
def test_channels_last_computes_the_same(name: CifarName) -> None:
    network = build(name).double().eval()
    images = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        expected = network(images)
        network = network.to(memory_format=torch.channels_last)
        logits = network(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["tfkd_mobilenetv2", "tfkd_shufflenetv2"])
def test_exported_program_takes_any_batch(name: CifarName) -> None:
    network = build_network(Cifar(name=name), num_classes=7, image_size=(32, 32), statistics=STATISTICS).eval()
    images = torch.rand(5, 3, 32, 32)
    program = torch.export.export(network, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(images), network(images), rtol=1e-4, atol=1e-5)
