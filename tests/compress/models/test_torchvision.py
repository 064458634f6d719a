"""Networks of torchvision: published weights from its cache, and without a network connection."""

from __future__ import annotations

import copy
import os
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig

from compress.errors import ModelError
from compress.models import Network, Statistics, Torchvision, build_network
from compress.models.torchvision import TorchvisionBackbone

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


def small_transformer() -> models.VisionTransformer:
    return models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10
    )


def small_windows() -> models.SwinTransformer:
    return models.SwinTransformer(
        patch_size=[4, 4], embed_dim=8, depths=[1, 2, 1], num_heads=[1, 2, 4], window_size=[4, 4], num_classes=10
    )


def small_convnext() -> models.ConvNeXt:
    return models.ConvNeXt(
        [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)], num_classes=10
    )


RESOLUTIONS = (32, 16, 8, 4, 2)
# Builder, channels of the maps at the resolutions of a 64x64 image, and width of the pooled feature.
SHOWING: dict[str, tuple[Callable[[], nn.Module], dict[int, int], int]] = {
    "resnet18": (
        lambda: models.resnet18(num_classes=10),
        dict(zip(RESOLUTIONS, (64, 64, 128, 256, 512), strict=True)),
        512,
    ),
    "mobilenet_v2": (
        lambda: models.mobilenet_v2(num_classes=10),
        dict(zip(RESOLUTIONS, (16, 24, 32, 96, 1280), strict=True)),
        1280,
    ),
    "mobilenet_v3_small": (
        lambda: models.mobilenet_v3_small(num_classes=10),
        dict(zip(RESOLUTIONS, (16, 16, 24, 48, 576), strict=True)),
        1024,
    ),
    "shufflenet_v2_x0_5": (
        lambda: models.shufflenet_v2_x0_5(num_classes=10),
        dict(zip(RESOLUTIONS, (24, 24, 48, 96, 1024), strict=True)),
        1024,
    ),
    "densenet": (
        lambda: models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=10),
        dict(zip(RESOLUTIONS, (16, 32, 32, 32, 32), strict=True)),
        32,
    ),
    "efficientnet_b0": (
        lambda: models.efficientnet_b0(num_classes=10),
        dict(zip(RESOLUTIONS, (16, 24, 40, 112, 1280), strict=True)),
        1280,
    ),
    "convnext": (small_convnext, {16: 8, 8: 16, 4: 32}, 32),
    "regnet_x_400mf": (
        lambda: models.regnet_x_400mf(num_classes=10),
        dict(zip(RESOLUTIONS, (32, 32, 64, 160, 400), strict=True)),
        400,
    ),
    "googlenet": (
        lambda: models.googlenet(num_classes=10, aux_logits=False, init_weights=False),
        dict(zip(RESOLUTIONS, (64, 192, 480, 832, 1024), strict=True)),
        1024,
    ),
    "swin": (small_windows, {16: 8, 8: 16, 4: 32}, 32),
}
showing = pytest.mark.parametrize("name", SHOWING)


def backbone_of(name: str) -> TorchvisionBackbone:
    torch.manual_seed(0)
    return TorchvisionBackbone(SHOWING[name][0](), label=name)


@showing
def test_maps_are_the_last_at_each_resolution(name: str) -> None:
    with torch.no_grad():
        features = backbone_of(name).eval().answer(torch.rand(2, 3, 64, 64)).features
    _, channels, width = SHOWING[name]
    assert {each.shape[2]: each.shape[1] for each in features.maps} == channels
    assert [each.shape[3] for each in features.maps] == list(channels)
    assert features.pooled.shape == (2, width)
    assert features.class_tokens == ()


@showing
@pytest.mark.parametrize("training", [False, True])
def test_answers_have_the_logits_of_forward_bit_for_bit(name: str, training: bool) -> None:
    backbone = backbone_of(name).train(training)
    twin = copy.deepcopy(backbone)
    images = torch.rand(3, 3, 64, 64)
    torch.manual_seed(1)
    logits = backbone(images)
    torch.manual_seed(1)
    assert torch.equal(twin.answer(images).logits, logits)
    assert all(torch.equal(twin.state_dict()[key], value) for key, value in backbone.state_dict().items())
    assert not any(module._forward_hooks for module in twin.modules())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet", "googlenet", "swin"])
def test_the_last_map_is_the_one_that_is_pooled(name: str) -> None:
    """In the densenets behind a ReLU that works in place, in swin behind the last normalisation."""
    with torch.no_grad():
        features = backbone_of(name).eval().answer(torch.rand(2, 3, 64, 64)).features
    torch.testing.assert_close(features.last_map.mean((2, 3)), features.pooled)


@showing
def test_gradients_pass_through_the_features(name: str) -> None:
    backbone = backbone_of(name).eval()
    features = backbone.answer(torch.rand(2, 3, 64, 64)).features
    torch.stack(
        [each.square().mean() for each in (*features.maps, features.last_map, features.pooled)]
    ).sum().backward()
    first = next(parameter for parameter in backbone.parameters() if parameter.ndim == 4)
    assert first.grad is not None
    assert first.grad.any()


def test_a_transformer_shows_patches_and_class_token_of_every_block() -> None:
    torch.manual_seed(0)
    model = small_transformer().eval()
    images = torch.rand(2, 3, 64, 64)
    outputs: list[torch.Tensor] = []
    for block in model.encoder.layers:
        block.register_forward_hook(lambda _, arguments, returned: outputs.append(returned))
    with torch.no_grad():
        answer = TorchvisionBackbone(model, label="vit").answer(images)
        assert torch.equal(answer.logits, model(images))
        last = model.encoder.ln(outputs[2])
    features = answer.features
    assert [each.shape for each in features.maps] == [(2, 16, 4, 4)] * 3
    for output, patches, class_token in zip(outputs[:3], features.maps, features.class_tokens, strict=True):
        assert torch.equal(class_token, output[:, 0])
        assert torch.equal(patches.flatten(2).transpose(1, 2), output[:, 1:])
    assert torch.equal(features.last_map.flatten(2).transpose(1, 2), last[:, 1:])
    assert torch.equal(features.pooled, last[:, 0])


def test_a_network_that_ends_in_a_convolution_has_no_features() -> None:
    network = build(SQUEEZENET.architecture()).eval()
    with pytest.raises(ModelError, match=r"squeezenet1_1 from torchvision .* does not end in a linear layer"):
        network.answer(torch.rand(1, 3, 32, 32))
