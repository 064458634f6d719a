"""Networks of timm: with random weights, from a local hub-format folder, and without a network connection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from timm.models import save_for_hf
from torch import nn

from compress.errors import ModelError
from compress.models import Network, Statistics, Timm, build_network

STATISTICS = Statistics(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
OWN = Statistics(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


def build(source: Timm, *, num_classes: int = 10, side: int = 32, replace_head: bool = False) -> Network:
    return build_network(
        source, num_classes=num_classes, image_size=(side, side), statistics=STATISTICS, replace_head=replace_head
    )


def write_folder(folder: Path, model: nn.Module, name: str, **changes: Any) -> Path:
    """A folder as the hub has it; `num_classes` of the network is 10 unless changed."""
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")
    pretrained_cfg = {
        "num_classes": 10,
        "input_size": [3, 32, 32],
        "mean": OWN.mean,
        "std": OWN.std,
        "classifier": "fc",
    }
    config = {"architecture": name, "num_classes": 10, "pretrained_cfg": pretrained_cfg, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    return write_folder(tmp_path / "hub", timm.create_model("test_resnet", num_classes=10), "test_resnet")


def test_folder_gives_its_weights_and_its_statistics(folder: Path) -> None:
    network = build(Timm(name="test_resnet", folder=folder))
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    state = network.state_dict()
    assert all(torch.equal(state[f"backbone.model.{name}"], tensor) for name, tensor in stored.items())
    assert network.statistics == OWN


def test_folder_written_by_timm_loads(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=10, img_size=32).eval()
    save_for_hf(model, str(tmp_path / "hub"), safe_serialization=True)
    network = build(Timm(name="test_vit", folder=tmp_path / "hub", statistics=STATISTICS)).eval()
    images = torch.rand(2, 3, 32, 32)
    normalised = (images - torch.tensor(STATISTICS.mean).view(3, 1, 1)) / torch.tensor(STATISTICS.std).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(network(images), model(normalised))


def test_folder_with_other_class_count_is_refused_as_a_teacher(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"hub have 10 classes, the data has 7: a loaded network must know"):
        build(Timm(name="test_resnet", folder=folder), num_classes=7)


def test_folder_as_a_start_of_training_keeps_all_but_the_head(folder: Path) -> None:
    network = build(Timm(name="test_resnet", folder=folder), num_classes=7, replace_head=True)
    state = network.state_dict()
    for name, tensor in safetensors.torch.load_file(folder / "model.safetensors").items():
        if name.startswith("fc."):
            assert state[f"backbone.model.{name}"].shape[0] == 7
        else:
            assert torch.equal(state[f"backbone.model.{name}"], tensor), name


@pytest.mark.parametrize("num_classes", [7, 10])
def test_weights_of_another_network_are_refused_even_with_a_new_head(folder: Path, num_classes: int) -> None:
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    del stored["layer1.0.conv1.weight"]
    safetensors.torch.save_file(stored, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"weights of .*hub cannot be loaded"):
        build(Timm(name="test_resnet", folder=folder), num_classes=num_classes, replace_head=True)


def test_folder_of_another_architecture_names_both(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"holds the network test_resnet, not test_vit; set that name"):
        build(Timm(name="test_vit", folder=folder))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_incomplete_folder_names_the_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=rf"is no model folder in the hub's format: {name} is missing"):
        build(Timm(name="test_resnet", folder=folder))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"architecture": "test_resnet"}', '{"pretrained_cfg": 3}', "[" * 10**5]
)
def test_damaged_config_is_named(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json cannot be read as the description of a timm model"):
        build(Timm(name="test_resnet", folder=folder))


def test_truncated_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"weights of .*hub cannot be loaded"):
        build(Timm(name="test_resnet", folder=folder))


def test_weights_of_a_foreign_format_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["custom_load"] = True
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="custom_load"):
        build(Timm(name="test_resnet", folder=folder))


def test_architecture_keeps_what_the_folder_says_about_the_network(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=10, img_size=32, depth=2)
    arguments = {"depth": 2, "num_classes": 10, "img_size": 32}
    source = Timm(name="test_vit", folder=write_folder(tmp_path / "hub", model, "test_vit", model_args=arguments))
    bare = source.architecture()
    assert bare == Timm(name="test_vit", arguments={"depth": 2})
    loaded, rebuilt = build(source).state_dict(), build(bare).state_dict()
    assert {name: tensor.shape for name, tensor in loaded.items()} == {
        name: tensor.shape for name, tensor in rebuilt.items()
    }


def test_transformer_is_built_for_the_size_of_the_images() -> None:
    assert build(Timm(name="test_vit"), side=48).state_dict()["backbone.model.pos_embed"].shape[1] == 10
    with pytest.raises(ModelError, match=r"test_vit cannot take images of 24x24 pixels"):
        build(Timm(name="test_vit"), side=24)


def test_arguments_reach_the_network_and_wrong_ones_are_named() -> None:
    network = build(Timm(name="test_vit", arguments={"depth": 2}))
    assert "backbone.model.blocks.1.norm1.weight" in network.state_dict()
    assert "backbone.model.blocks.2.norm1.weight" not in network.state_dict()
    with pytest.raises(ModelError, match=r"unexpected keyword argument 'dept'"):
        build(Timm(name="test_vit", arguments={"dept": 2}))


@pytest.mark.parametrize("name", ["num_classes", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"])
def test_arguments_that_would_go_behind_our_back_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} cannot be set here"):
        Timm(name="test_vit", arguments={name: "evil.pth"})


def test_unknown_tag_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"no weights 'test_resnet\.bogus'; it has test_resnet\.r160_in1k"):
        build(Timm(name="test_resnet.bogus", pretrained=True))


def test_class_count_of_the_hub_is_compared_before_downloading() -> None:
    with pytest.raises(ModelError, match=r"test_resnet\.r160_in1k have 1000 classes, the data has 10"):
        build(Timm(name="test_resnet.r160_in1k", pretrained=True))


def test_hub_out_of_reach_asks_for_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"test_resnet\.r160_in1k cannot be loaded .* give a local folder with config"):
        build(Timm(name="test_resnet.r160_in1k", pretrained=True), num_classes=1000)
