"""The networks of the public CIFAR distillation code bases under their public names.

Their checkpoints load as they are: names, state-dict keys, parameter counts and multiply-adds agree with
RepDistiller (HobbitLong/RepDistiller) and mdistiller (megvii-research/mdistiller).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, final

from compress.models.cifar_mobilenet import CifarMobileNetV2
from compress.models.cifar_resnet import NARROW, WIDE, CifarResNet, CifarResNet50
from compress.models.cifar_shufflenet import CifarShuffleV1, CifarShuffleV2
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
}


@final
class Cifar(Source):
    """A network for small images from the public CIFAR distillation code bases."""

    source: Literal["cifar"] = "cifar"
    name: CifarName
    """The name the network has in RepDistiller and mdistiller."""

    @property
    def label(self) -> str:
        return self.name

    def weight_settings(self) -> tuple[str, ...]:
        return () if self.checkpoint is None else ("checkpoint",)

    def create(self, *, num_classes: int, image_size: tuple[int, int], replace_head: bool) -> Created:
        return Created(NETWORKS[self.name](num_classes, image_size), statistics=None)

    def architecture(self) -> Cifar:
        return Cifar(name=self.name)
