"""What holds for every source of networks."""

from __future__ import annotations

import re

import pytest
import torch
from pydantic import TypeAdapter

from compress.errors import ModelError
from compress.models import Cifar, Cnn, ModelSource, Network, Source, Statistics, Timm, Torchvision, build_network

STATISTICS = Statistics(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
SOURCES = [Cifar(name="resnet8"), Cnn(), Timm(name="test_resnet"), Torchvision(name="squeezenet1_1")]


def identify(source: Source) -> str:
    return type(source).__name__


def test_every_source_of_the_union_is_tested() -> None:
    schema = TypeAdapter(ModelSource).json_schema()
    assert sorted(schema["discriminator"]["mapping"]) == ["cifar", "cnn", "timm", "torchvision"]
    assert len(SOURCES) == 4


@pytest.mark.parametrize("source", SOURCES, ids=identify)
def test_settings_survive_a_round_trip_through_json(source: Source) -> None:
    adapter: TypeAdapter[Source] = TypeAdapter(ModelSource)
    assert adapter.validate_json(source.model_dump_json()) == source


@pytest.mark.parametrize("source", SOURCES, ids=identify)
def test_network_is_seeded_by_torch_and_starts_in_training_mode(source: Source) -> None:
    def build() -> Network:
        torch.manual_seed(0)
        return build_network(source, num_classes=6, image_size=(32, 32), statistics=STATISTICS)

    network, again = build(), build()
    assert all(module.training for module in network.modules())
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in network.state_dict().items())
    with torch.no_grad():
        assert network.eval()(torch.rand(3, 3, 32, 32)).shape == (3, 6)


@pytest.mark.parametrize("source", SOURCES, ids=identify)
def test_architecture_keeps_no_weights_and_rebuilds_the_same_network(source: Source, tmp_path: object) -> None:
    loaded = source.model_copy(update={"checkpoint": tmp_path, "statistics": STATISTICS, "classes": ("a",)})
    assert loaded.brings_weights
    bare = loaded.architecture()
    assert bare == source.architecture()
    assert not bare.brings_weights
    assert str(tmp_path) not in bare.model_dump_json()


@pytest.mark.parametrize("source", SOURCES, ids=identify)
def test_features_have_one_row_per_image_or_say_why_not(source: Source) -> None:
    network = build_network(source, num_classes=6, image_size=(32, 32), statistics=STATISTICS).eval()
    if isinstance(source, Torchvision):
        with pytest.raises(ModelError, match="squeezenet1_1 from torchvision has no interface to its features"):
            network.answer(torch.rand(2, 3, 32, 32))
        return
    with torch.no_grad():
        features = network.answer(torch.rand(2, 3, 32, 32)).features
    assert features.pooled.ndim == 2
    assert all(maps.ndim == 4 and maps.shape[0] == 2 for maps in features.maps)


@pytest.mark.parametrize(
    ("source", "suggestion"),
    [(Timm(name="resnet19"), "did you mean resnet18"), (Torchvision(name="resnet19"), "did you mean resnet18")],
)
def test_unknown_name_suggests_close_ones(source: Source, suggestion: str) -> None:
    with pytest.raises(ModelError, match=re.escape(f"has no model 'resnet19'; {suggestion}")):
        build_network(source, num_classes=6, image_size=(32, 32), statistics=STATISTICS)


@pytest.mark.parametrize("source", [Timm(name="test_vit"), Torchvision(name="squeezenet1_1")], ids=identify)
def test_image_too_small_names_network_and_size(source: Source) -> None:
    with pytest.raises(ModelError, match=rf"{source.label} cannot take images of 8x8 pixels .* set a size it takes"):
        build_network(source, num_classes=6, image_size=(8, 8), statistics=STATISTICS)


def test_unknown_key_is_refused() -> None:
    with pytest.raises(ValueError, match="pretraind"):
        Timm.model_validate({"source": "timm", "name": "resnet18", "pretraind": True})
