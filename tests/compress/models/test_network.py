"""A network normalises its own images and knows its statistics exactly."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

from compress.models import Backbone, Cnn, Network, Statistics, build_network, count_flops, count_parameters
from compress.types import Answer, Features, FloatImages, Logits

STATISTICS = Statistics(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


class RowAttention(Backbone):
    """Every row of a one-channel image attends to every other."""

    def answer(self, images: FloatImages) -> Answer:
        rows = images.mean(1, keepdim=True)
        pooled = functional.scaled_dot_product_attention(rows, rows, rows).mean((1, 2))
        return Answer(pooled, Features(pooled, (images,), images))

    def forward(self, images: FloatImages) -> Logits:
        return self.answer(images).logits


class MeanColour(Backbone):
    """Logits are the mean of each normalised channel."""

    def answer(self, images: FloatImages) -> Answer:
        pooled = images.mean((2, 3))
        return Answer(pooled, Features(pooled, (images,), images))

    def forward(self, images: FloatImages) -> Logits:
        return self.answer(images).logits


def test_first_layer_normalises_each_channel() -> None:
    network = Network(MeanColour(), STATISTICS)
    images = torch.tensor([0.7, 0.9, 0.0]).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    expected = torch.tensor([[1.0, 2.0, -1.0]] * 2)
    torch.testing.assert_close(network(images), expected)
    torch.testing.assert_close(network.answer(images).features.pooled, expected)


def test_state_dict_is_the_backbone_alone() -> None:
    network = build_network(Cnn(), num_classes=4, image_size=(8, 8), statistics=STATISTICS)
    assert all(name.startswith("backbone.") for name in network.state_dict())


def test_copy_is_independent_and_keeps_its_statistics() -> None:
    network = build_network(Cnn(), num_classes=4, image_size=(8, 8), statistics=STATISTICS)
    twin = copy.deepcopy(network)
    assert twin.statistics == STATISTICS
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert any(bool(parameter.any()) for parameter in network.parameters())


@pytest.mark.parametrize("std", [0.0, -0.1, float("nan"), float("inf")])
def test_deviation_must_be_positive(std: float) -> None:
    with pytest.raises(ValueError, match="std"):
        Statistics(mean=(0.5, 0.5, 0.5), std=(0.2, std, 0.2))


def test_plain_cnn_counts_by_hand() -> None:
    network = build_network(Cnn(channels=(8, 16)), num_classes=10, image_size=(8, 8), statistics=STATISTICS)
    convolutions, normalisations, linear = 3 * 9 * 8 + 8 * 9 * 16, 2 * (8 + 16), 16 * 10 + 10
    assert count_parameters(network) == convolutions + normalisations + linear
    multiply_adds = 3 * 9 * 8 * 64 + 8 * 9 * 16 * 16 + 16 * 10
    assert count_flops(network, (8, 8)) == 2 * multiply_adds


def test_attention_is_counted() -> None:
    num_rows, width = 16, 8
    network = Network(RowAttention(), STATISTICS)
    assert count_flops(network, (num_rows, width)) == 2 * 2 * num_rows * num_rows * width


def test_counting_leaves_the_network_as_it_was() -> None:
    network = build_network(Cnn(), num_classes=4, image_size=(8, 8), statistics=STATISTICS)
    network.backbone.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    count_flops(network, (8, 8))
    assert network.training
    assert not network.backbone.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_plain_cnn_needs_channels() -> None:
    with pytest.raises(ValueError, match="channels"):
        Cnn(channels=())
    with pytest.raises(ValueError, match="channels"):
        Cnn(channels=(8, 0))


@pytest.mark.parametrize(("num_classes", "image_size"), [(0, (8, 8)), (3, (0, 8))])
def test_impossible_shapes_are_wrong_calls(num_classes: int, image_size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        build_network(Cnn(), num_classes=num_classes, image_size=image_size, statistics=STATISTICS)
