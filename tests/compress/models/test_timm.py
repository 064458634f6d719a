"""Networks of timm: with random weights, from a local hub-format folder, and without a network connection."""

from __future__ import annotations

import copy
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


SLIM = {"depth": 3, "embed_dim": 24}
SHOWING: dict[str, tuple[Timm, int]] = {
    "residual": (Timm(name="test_resnet"), 64),
    "re-parameterised": (Timm(name="test_byobnet"), 32),
    "convolution behind the last stage": (Timm(name="test_efficientnet"), 64),
    "hidden layer in the head": (Timm(name="mobilenetv3_small_050"), 32),
    "normalisation in the head": (Timm(name="test_convnext"), 64),
    "perceptron as a head": (Timm(name="test_mambaout"), 64),
    "convolution as a classifier": (Timm(name="resnetv2_18"), 32),
    "attention between convolutions": (Timm(name="edgenext_xx_small"), 64),
    "transformer": (Timm(name="test_vit"), 64),
    "transformer without a class token": (
        Timm(
            name="vit_tiny_patch16_224", arguments={**SLIM, "class_token": False, "reg_tokens": 2, "global_pool": "avg"}
        ),
        64,
    ),
    "transformer with relative positions": (Timm(name="test_vit_relpos"), 64),
    "distilled": (Timm(name="deit_tiny_distilled_patch16_224", arguments=SLIM), 64),
    "distilled with normalisation": (Timm(name="levit_128s"), 64),
    "deit III": (Timm(name="deit3_small_patch16_224", arguments=SLIM), 64),
    "class token behind the blocks": (Timm(name="cait_xxs24_224", arguments={"depth": 2, "embed_dim": 24}), 64),
    "windows, channels last": (
        Timm(
            name="swin_tiny_patch4_window7_224",
            arguments={"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 3, 4]},
        ),
        64,
    ),
}
showing = pytest.mark.parametrize(("source", "side"), SHOWING.values(), ids=SHOWING)


@showing
@pytest.mark.parametrize("training", [False, True])
def test_answers_have_the_logits_of_forward_bit_for_bit(source: Timm, side: int, training: bool) -> None:
    torch.manual_seed(0)
    network = build(source, side=side)
    twin = copy.deepcopy(network)
    images = torch.rand(3, 3, side, side)
    for each in (network, twin):
        each.train(training)
    torch.manual_seed(1)
    logits = network(images)
    torch.manual_seed(1)
    assert torch.equal(twin.answer(images).logits, logits)
    # Batch statistics too moved once, and no watching stays behind.
    assert all(torch.equal(twin.state_dict()[name], value) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in twin.modules())


@showing
def test_maps_become_smaller_and_gradients_reach_all_features(source: Timm, side: int) -> None:
    torch.manual_seed(0)
    features = build(source, side=side).eval().answer(torch.rand(2, 3, side, side)).features
    assert features.pooled.ndim == 2
    sizes = [each.shape[2:].numel() for each in features.maps]
    assert sizes == sorted(sizes, reverse=True)
    assert features.last_map.shape[2:] == features.maps[-1].shape[2:]
    assert all(tensor.requires_grad for tensor in (features.pooled, features.last_map, *features.maps))


@pytest.mark.parametrize("key", ["residual", "convolution behind the last stage", "windows, channels last"])
def test_the_last_map_is_the_one_that_is_pooled(key: str) -> None:
    source, side = SHOWING[key]
    with torch.no_grad():
        features = build(source, side=side).eval().answer(torch.rand(2, 3, side, side)).features
    torch.testing.assert_close(features.last_map.mean((2, 3)), features.pooled)


def test_a_transformer_shows_patches_and_class_token_of_every_block() -> None:
    network = build(Timm(name="test_vit", arguments={"depth": 4}), side=64).eval()
    model: Any = network.backbone.model
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        features = network.answer(images).features
        tokens = model.norm_pre(model._pos_embed(model.patch_embed((images - network.mean) / network.std)))
        for block, patches, class_token in zip(model.blocks, features.maps, features.class_tokens, strict=True):
            tokens = block(tokens)
            assert torch.equal(class_token, tokens[:, 0])
            assert torch.equal(patches.flatten(2).transpose(1, 2), tokens[:, 1:])
        assert torch.equal(features.last_map.flatten(2).transpose(1, 2), model.norm(tokens)[:, 1:])
        assert torch.equal(features.pooled, model.norm(tokens)[:, 0])


@pytest.mark.parametrize("key", ["transformer without a class token", "class token behind the blocks", "residual"])
def test_networks_without_class_tokens_in_their_blocks_show_none(key: str) -> None:
    source, side = SHOWING[key]
    with torch.no_grad():
        assert build(source, side=side).eval().answer(torch.rand(1, 3, side, side)).features.class_tokens == ()


def test_two_classifiers_share_the_mean_of_their_tokens() -> None:
    source, side = SHOWING["distilled"]
    network = build(source, side=side).eval()
    model: Any = network.backbone.model
    images = torch.rand(2, 3, side, side)
    with torch.no_grad():
        pooled = network.answer(images).features.pooled
        tokens = model.forward_features((images - network.mean) / network.std)
    torch.testing.assert_close(pooled, tokens[:, :2].mean(dim=1))


def test_pooled_feature_is_what_the_last_linear_layer_is_given() -> None:
    for key in ("hidden layer in the head", "perceptron as a head", "normalisation in the head"):
        source, side = SHOWING[key]
        network = build(source, side=side).eval()
        linear = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        with torch.no_grad():
            answer = network.answer(torch.rand(2, 3, side, side))
            assert torch.equal(linear(answer.features.pooled), answer.logits), key


@pytest.mark.parametrize(("name", "side"), [("crossvit_tiny_240", 240), ("coat_tiny", 64)])
def test_networks_of_parallel_branches_have_no_features(name: str, side: int) -> None:
    network = build(Timm(name=name), side=side).eval()
    with torch.no_grad(), pytest.raises(ModelError, match=f"{name} has no interface to its features in timm"):
        network.answer(torch.rand(1, 3, side, side))
