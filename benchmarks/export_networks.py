"""The networks of the export list, with random weights that answer, and the images they are asked about."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import nn

from compress.data.preprocessing import Preprocessing, resize_and_crop
from compress.image_files import TorchvisionPath, as_png
from compress.models import Cifar, ModelSource, Network, Statistics, Timm, Torchvision, build_network
from compress.models.cifar import CifarName

DATA = Path("../shared/data")
STATISTICS = Statistics(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
NUM_CALIBRATION = 64

TIMM = (
    "resnet18",
    "resnet50",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "mobilenetv4_conv_small",
    "efficientnet_b0",
    "regnety_002",
    "repvgg_a0",
    "mobileone_s0",
    "ghostnet_100",
    "convnext_atto",
    "edgenext_xx_small",
    "mobilevit_xxs",
    "fastvit_t8",
    "levit_128s",
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
)
TORCHVISION = ("shufflenet_v2_x1_0", "squeezenet1_1", "mnasnet0_5")


class Entry(NamedTuple):
    """A network of the list."""

    label: str
    source: ModelSource
    size: int
    num_classes: int

    @property
    def preprocessing(self) -> Preprocessing:
        """Small pictures have their size already; photos are resized and cropped as ImageNet's usually are."""
        if self.size == 32:
            return Preprocessing(height=32, width=32, resize=None, alpha_background="white")
        return resize_and_crop(self.size, crop_fraction=0.875, interpolation="bicubic", alpha_background="white")


def entries() -> list[Entry]:
    """All networks of the list."""
    small = [Entry(f"cifar {name}", Cifar(name=name), 32, 100) for name in get_args(CifarName)]
    timm = [Entry(f"timm {name}", Timm(name=name), 224, 1000) for name in TIMM]
    torchvision = [Entry(f"torchvision {name}", Torchvision(name=name), 224, 1000) for name in TORCHVISION]
    return [*small, *timm, *torchvision]


def image_files(size: int, count: int) -> list[bytes]:
    """Real image files, spread over the classes, or noise as PNG."""
    archive = DATA / ("cifar100.zip" if size == 32 else "imagenet-samples.zip")
    if not archive.is_file():
        noise = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        return [as_png(picture) for picture in noise]
    with zipfile.ZipFile(archive) as opened:
        names = sorted(name for name in opened.namelist() if name.endswith((".png", ".jpg")) and "/train/" not in name)
        chosen = np.random.default_rng(0).permutation(len(names))[:count]
        return [opened.read(names[place]) for place in chosen]


def random_network(entry: Entry, files: list[bytes]) -> Network:
    """With weights from seed 0, and answers as different as its images are."""
    torch.manual_seed(0)
    network = build_network(
        entry.source, num_classes=entry.num_classes, image_size=(entry.size, entry.size), statistics=STATISTICS
    )
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over batches
            # Residual branches that start at zero stay small: with large ones a random transformer is chaotic, and
            # float32 itself is then off by 0.03 of the largest logit (levit_128s against float64).
            norm.weight.clamp_(min=0.1).mul_(torch.empty_like(norm.weight).uniform_(0.8, 1.2))
            norm.bias.uniform_(-0.2, 0.2)
    transform: Any = TorchvisionPath(network.train(), entry.preprocessing)
    network.train()  # the line above left it in evaluation mode
    for start in range(0, NUM_CALIBRATION, 32):
        transform(files[start : start + 32])
    network.eval()
    mean = torch.from_numpy(transform(files[:32])).mean(dim=0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.shape[0] == entry.num_classes:
                assert module.bias is not None
                module.bias.sub_(mean)
    return network
