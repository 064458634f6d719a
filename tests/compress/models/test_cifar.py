"""The CIFAR networks are those of the public distillation code bases: counts, keys, order, values."""

from __future__ import annotations

import hashlib
import math
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from compress.errors import ModelError
from compress.models import Backbone, Cifar, Statistics, build_network, count_flops, count_parameters
from compress.models.cifar import NETWORKS, CifarName

STATISTICS = Statistics(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))

# Parameters, multiply-adds of one 32x32 image and width of the pooled feature at 100 classes, counted on the public
# modules; then the first 16 digits of the SHA-256 over their state dict's lines "<key> <shape>", in order.
PUBLIC: dict[CifarName, tuple[int, int, int, str]] = {
    "resnet8": (83_892, 12_507_392, 64, "b0d6b90b7f82eae7"),
    "resnet14": (181_108, 26_663_168, 64, "09b9f32bbe1fd323"),
    "resnet20": (278_324, 40_818_944, 64, "d62528ebf09500ac"),
    "resnet32": (472_756, 69_130_496, 64, "871c1b2d9e39d361"),
    "resnet44": (667_188, 97_442_048, 64, "e3f9bc0daaf54a9b"),
    "resnet56": (861_620, 125_753_600, 64, "7d3a91d4a8b97b8c"),
    "resnet110": (1_736_564, 253_155_584, 64, "471c41f07af2c39c"),
    "resnet8x4": (1_233_540, 177_071_104, 256, "a04332a459ae1465"),
    "resnet32x4": (7_433_860, 1_083_040_768, 256, "24fbb1ea1d0f23f9"),
    "wrn_16_1": (180_916, 26_663_168, 64, "413afade7e8fc41a"),
    "wrn_16_2": (703_284, 101_118_464, 128, "5994bb013d98efa7"),
    "wrn_40_1": (569_780, 83_286_272, 64, "c785d10f458c7b05"),
    "wrn_40_2": (2_255_156, 327_610_880, 128, "9a74d15007bab65e"),
    "vgg8": (3_965_028, 96_192_512, 512, "fdc773ff39915584"),
    "vgg11": (9_277_284, 209_438_720, 512, "0b9551ef3480a6ce"),
    "vgg13": (9_462_180, 284_936_192, 512, "bf74037647da8d81"),
    "MobileNetV2": (812_836, 6_523_648, 1280, "68a2c5f51e5cea07"),
    "ShuffleV1": (949_258, 38_691_456, 960, "a2ef493a832e640c"),
    "ShuffleV2": (1_355_528, 44_504_448, 1024, "577996dd44e66b38"),
    "ResNet50": (23_705_252, 1_298_014_208, 2048, "d22cdf0e7420b1ea"),
    "tfkd_mobilenetv2": (2_369_380, 64_947_264, 1280, "8129b426869ed092"),
    "tfkd_shufflenetv2": (1_360_896, 43_675_520, 1024, "12a99fcd4db5be42"),
    "tfkd_resnet18": (11_220_132, 555_468_800, 512, "7e9e75d71f67a043"),
    "tfkd_googlenet": (6_258_500, 1_521_848_320, 1024, "97a77d78bd34b6cb"),
    "tfkd_densenet121": (7_048_548, 888_442_880, 1024, "ed93767b58ae2fa3"),
    "tfkd_resnext29": (34_518_948, 5_387_358_208, 1024, "76acca8c4f315222"),
}

# First three logits of the second image that the public modules compute in float64 under `fill_by_formula_`.
PUBLIC_LOGITS: dict[CifarName, tuple[float, float, float]] = {
    "resnet8": (0.306817343392, 2.54090224342, 3.1564754803),
    "resnet20": (74894.3804308, 204564.869537, 204909.036126),
    "resnet8x4": (1.63277190555, -8.90441382769, 15.709583089),
    "wrn_16_1": (106.555565506, 308.162749573, 314.94910187),
    "wrn_16_2": (6975.18181971, 23624.6175715, -10025.6605987),
    "vgg8": (22.2306312225, 37.2075543673, 49.7471554733),
    "MobileNetV2": (1.64460939538, -4.24254287306, 4.91885136548),
    "ShuffleV1": (-14.6387036507, -33.1964112524, -48.7869937906),
    "ShuffleV2": (0.887173395455, 1.99760567753, 2.6070347088),
    "ResNet50": (2.1445012718e15, 7.02554635272e15, 5.04404328153e15),
    "tfkd_mobilenetv2": (5.72993269506, -11.8834396338, 13.5318570359),
    "tfkd_shufflenetv2": (2.23482942572, 3.54066471163, 3.93905104505),
    "tfkd_resnet18": (82595.405556, 236443.416273, 374587.056943),
    "tfkd_googlenet": (77710.8626551, 56917.1183571, 21252.9549557),
    "tfkd_densenet121": (85674.8511085, 175649.273713, 219732.774769),
    "tfkd_resnext29": (185500011023.0, 453700891615.0, 603365789618.0),
}

# A few keys of each layout, as they stand in the published checkpoints.
PUBLIC_KEYS: dict[CifarName, tuple[str, ...]] = {
    "resnet8x4": (
        "conv1.weight",
        "bn1.running_var",
        "layer1.0.conv1.weight",
        "layer1.0.downsample.0.weight",
        "fc.bias",
    ),
    "wrn_16_2": (
        "conv1.weight",
        "block1.layer.0.bn1.weight",
        "block1.layer.0.convShortcut.weight",
        "bn1.bias",
        "fc.bias",
    ),
    "vgg8": ("block0.0.weight", "block0.0.bias", "block0.1.running_mean", "block4.0.weight", "classifier.weight"),
    "MobileNetV2": (
        "conv1.0.weight",
        "blocks.1.1.conv.3.weight",
        "blocks.0.0.conv.7.bias",
        "conv2.1.bias",
        "classifier.0.bias",
    ),
    "ShuffleV1": ("conv1.weight", "bn1.weight", "layer2.7.conv3.weight", "layer3.0.bn3.bias", "linear.weight"),
    "ShuffleV2": (
        "conv1.weight",
        "layer1.0.conv5.weight",
        "layer2.7.bn3.weight",
        "conv2.weight",
        "bn2.bias",
        "linear.bias",
    ),
    "ResNet50": (
        "conv1.weight",
        "layer1.0.shortcut.0.weight",
        "layer3.5.conv3.weight",
        "layer4.0.shortcut.1.bias",
        "linear.bias",
    ),
    "tfkd_mobilenetv2": ("pre.0.bias", "stage1.residual.3.bias", "stage6.2.residual.6.weight", "conv2.bias"),
    "tfkd_shufflenetv2": ("pre.0.bias", "stage2.0.shortcut.2.weight", "stage3.7.residual.5.weight", "fc.bias"),
    "tfkd_resnet18": ("layer1.1.conv2.weight", "layer2.0.shortcut.1.weight", "layer4.1.bn2.bias", "linear.bias"),
    "tfkd_googlenet": ("prelayer.0.bias", "a3.b3.6.weight", "e4.b4.1.bias", "b5.b2.4.running_var", "linear.bias"),
    "tfkd_densenet121": (
        "conv1.weight",
        "features.dense_block_layer_0.bottle_neck_layer_0.bottle_neck.0.weight",
        "features.transition_layer_2.down_sample.1.weight",
        "features.dense_block3.bottle_neck_layer_15.bottle_neck.5.weight",
        "features.bn.bias",
        "linear.bias",
    ),
    "tfkd_resnext29": (
        "conv_1_3x3.weight",
        "bn_1.weight",
        "stage_2.stage_2_bottleneck_0.shortcut.shortcut_bn.bias",
        "stage_3.stage_3_bottleneck_2.conv_expand.weight",
        "classifier.bias",
    ),
}


def build(name: CifarName, *, num_classes: int = 100, side: int = 32) -> Backbone:
    return NETWORKS[name](num_classes, (side, side))


def fill_by_formula_(network: Backbone) -> Backbone:
    """Deterministic weights that no random generator of any version can change."""
    for index, (name, tensor) in enumerate(network.state_dict().items()):
        if not tensor.is_floating_point():
            continue
        wave = torch.sin(0.7 * torch.arange(tensor.numel(), dtype=torch.float64) + index).view(tensor.shape)
        if tensor.ndim > 1:
            values = wave * math.sqrt(2 / tensor[0].numel())
        elif name.endswith(("running_var", "weight")):
            values = 1 + 0.3 * wave
        else:
            values = 0.1 * wave
        tensor.copy_(values)
    return network.eval()


def test_every_name_has_a_network() -> None:
    assert set(NETWORKS) == set(get_args(CifarName)) == set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_parameters_and_operations_equal_the_public_ones(name: CifarName) -> None:
    network = build_network(Cifar(name=name), num_classes=100, image_size=(32, 32), statistics=STATISTICS)
    num_parameters, num_multiply_adds, _, _ = PUBLIC[name]
    assert count_parameters(network) == num_parameters
    assert count_flops(network, (32, 32)) == 2 * num_multiply_adds


@pytest.mark.parametrize("name", PUBLIC)
def test_keys_shapes_and_their_order_equal_the_public_ones(name: CifarName) -> None:
    lines = [f"{key} {tuple(tensor.shape)}" for key, tensor in build(name).state_dict().items()]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == PUBLIC[name][3]


@pytest.mark.parametrize("name", PUBLIC_KEYS)
def test_published_checkpoint_keys_exist(name: CifarName) -> None:
    assert set(PUBLIC_KEYS[name]) <= set(build(name).state_dict())


@pytest.mark.parametrize("name", PUBLIC_LOGITS)
def test_logits_equal_those_of_the_public_code(name: CifarName) -> None:
    network = fill_by_formula_(build(name).double())
    images = torch.sin(0.01 * torch.arange(2 * 3 * 32 * 32, dtype=torch.float64)).view(2, 3, 32, 32)
    with torch.no_grad():
        logits = network(images[1:])[0, :3]
    # Double precision leaves rounding of about 1e-15; the numbers above have twelve digits.
    torch.testing.assert_close(logits, torch.tensor(PUBLIC_LOGITS[name], dtype=torch.float64), rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet50"])
@pytest.mark.parametrize("side", [8, 64])
def test_other_image_sizes_work(name: CifarName, side: int) -> None:
    network = build(name, num_classes=5, side=side).eval()
    with torch.no_grad():
        assert network(torch.rand(2, 3, side, side)).shape == (2, 5)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"])
def test_features_lead_to_the_logits(name: CifarName) -> None:
    network = build(name).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        features = network.answer(images).features
        last_layer = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        torch.testing.assert_close(last_layer(features.pooled), network(images))
    assert features.pooled.shape == (2, PUBLIC[name][2])
    sizes = [maps.shape[-1] for maps in features.maps]
    assert len(sizes) >= 4
    assert sizes == sorted(sizes, reverse=True)


def test_vgg_pools_a_fourth_time_from_64_pixels_on() -> None:
    def last_map(side: int) -> Tensor:
        network = build("vgg8", side=side).eval()
        with torch.no_grad():
            return network.answer(torch.rand(1, 3, side, side)).features.maps[-1]

    assert last_map(32).shape[-1] == 4
    assert last_map(64).shape[-1] == 4


def test_too_small_image_names_size_and_minimum() -> None:
    with pytest.raises(ModelError, match=r"at least 8x8 pixels, got 4x32"):
        build_network(Cifar(name="vgg11"), num_classes=10, image_size=(4, 32), statistics=STATISTICS)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'resnet8x4', 'resnet32x4'"):
        Cifar.model_validate({"source": "cifar", "name": "resnet9"})


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1"])
def test_same_seed_gives_same_weights(name: CifarName) -> None:
    states: list[dict[str, Tensor]] = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(build(name).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"])
def test_channels_last_computes_the_same(name: CifarName) -> None:
    network = build(name).double().eval()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = network(images)
        network = network.to(memory_format=torch.channels_last)
        logits = network(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "ShuffleV2"])
def test_exported_program_takes_any_batch(name: CifarName) -> None:
    network = build_network(Cifar(name=name), num_classes=7, image_size=(32, 32), statistics=STATISTICS).eval()
    images = torch.rand(5, 3, 32, 32)
    program = torch.export.export(network, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(images), network(images), rtol=1e-4, atol=1e-5)
