"""The networks of the public CIFAR distillation code bases.

Their checkpoints load as they are: state-dict keys, parameter counts and multiply-adds agree with the public modules.
Names without a prefix are those of RepDistiller (HobbitLong/RepDistiller) and mdistiller (megvii-research/mdistiller).
Tf-KD (yuanli2333/Teacher-free-Knowledge-Distillation) has other networks under some of the same names, so its own
carry the prefix `tfkd_`: `MobileNetV2` has 0.8 million parameters, `tfkd_mobilenetv2` 2.4; `ShuffleV2` is not
`tfkd_shufflenetv2`. Only its ResNet50 is the `ResNet50` here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, final

from compress.models.cifar_mobilenet import CifarMobileNetV2
from compress.models.cifar_resnet import NARROW, WIDE, CifarResNet, CifarResNet50
from compress.models.cifar_shufflenet import CifarShuffleV1, CifarShuffleV2
from compress.models.cifar_tfkd_dense import TfkdDenseNet121, TfkdGoogLeNet
from compress.models.cifar_tfkd_mobile import TfkdMobileNetV2, TfkdShuffleNetV2
from compress.models.cifar_tfkd_resnet import TfkdResNet18, TfkdResNeXt29
from compress.models.cifar_vgg import CifarVgg
from compress.models.cifar_wrn import CifarWideResNet
from compress.models.network import Backbone
from compress.models.source import Created, Source

CifarName = Literal[
    "resnet8",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet8x4",
    "resnet32x4",
    "wrn_16_1",
    "wrn_16_2",
    "wrn_40_1",
    "wrn_40_2",
    "vgg8",
    "vgg11",
    "vgg13",
    "MobileNetV2",
    "ShuffleV1",
    "ShuffleV2",
    "ResNet50",
    "tfkd_mobilenetv2",
    "tfkd_shufflenetv2",
    "tfkd_resnet18",
    "tfkd_googlenet",
    "tfkd_densenet121",
    "tfkd_resnext29",
]
ImageSize = tuple[int, int]

NETWORKS: Mapping[CifarName, Callable[[int, ImageSize], Backbone]] = {
    "resnet8": lambda classes, _: CifarResNet(8, NARROW, num_classes=classes),
    "resnet14": lambda classes, _: CifarResNet(14, NARROW, num_classes=classes),
    "resnet20": lambda classes, _: CifarResNet(20, NARROW, num_classes=classes),
    "resnet32": lambda classes, _: CifarResNet(32, NARROW, num_classes=classes),
    "resnet44": lambda classes, _: CifarResNet(44, NARROW, num_classes=classes),
    "resnet56": lambda classes, _: CifarResNet(56, NARROW, num_classes=classes),
    "resnet110": lambda classes, _: CifarResNet(110, NARROW, num_classes=classes),
    "resnet8x4": lambda classes, _: CifarResNet(8, WIDE, num_classes=classes),
    "resnet32x4": lambda classes, _: CifarResNet(32, WIDE, num_classes=classes),
    "wrn_16_1": lambda classes, _: CifarWideResNet(16, 1, num_classes=classes),
    "wrn_16_2": lambda classes, _: CifarWideResNet(16, 2, num_classes=classes),
    "wrn_40_1": lambda classes, _: CifarWideResNet(40, 1, num_classes=classes),
    "wrn_40_2": lambda classes, _: CifarWideResNet(40, 2, num_classes=classes),
    "vgg8": lambda classes, size: CifarVgg((1, 1, 1, 1, 1), num_classes=classes, image_size=size),
    "vgg11": lambda classes, size: CifarVgg((1, 1, 2, 2, 2), num_classes=classes, image_size=size),
    "vgg13": lambda classes, size: CifarVgg((2, 2, 2, 2, 2), num_classes=classes, image_size=size),
    "MobileNetV2": lambda classes, _: CifarMobileNetV2(num_classes=classes),
    "ShuffleV1": lambda classes, _: CifarShuffleV1(num_classes=classes),
    "ShuffleV2": lambda classes, _: CifarShuffleV2(num_classes=classes),
    "ResNet50": lambda classes, _: CifarResNet50(num_classes=classes),
    "tfkd_mobilenetv2": lambda classes, _: TfkdMobileNetV2(num_classes=classes),
    "tfkd_shufflenetv2": lambda classes, _: TfkdShuffleNetV2(num_classes=classes),
    "tfkd_resnet18": lambda classes, _: TfkdResNet18(num_classes=classes),
    "tfkd_googlenet": lambda classes, _: TfkdGoogLeNet(num_classes=classes),
    "tfkd_densenet121": lambda classes, size: TfkdDenseNet121(num_classes=classes, image_size=size),
    "tfkd_resnext29": lambda classes, _: TfkdResNeXt29(num_classes=classes),
}


@final
class Cifar(Source):
    """A network for small images from the public CIFAR distillation code bases."""

    source: Literal["cifar"] = "cifar"
    name: CifarName
    """The name the network has in RepDistiller and mdistiller or, behind `tfkd_`, in Tf-KD."""

    @property
    def label(self) -> str:
        return self.name

    def weight_settings(self) -> tuple[str, ...]:
        return () if self.checkpoint is None else ("checkpoint",)

    def create(self, *, num_classes: int, image_size: tuple[int, int], replace_head: bool) -> Created:
        return Created(NETWORKS[self.name](num_classes, image_size), statistics=None)

    def architecture(self) -> Cifar:
        return Cifar(name=self.name)
