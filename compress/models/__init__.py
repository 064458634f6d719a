"""Where networks come from, one file per source; the union below is the registry."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from compress.models.build import build_network
from compress.models.cifar import Cifar
from compress.models.classes import check_classes, source_classes
from compress.models.cnn import Cnn
from compress.models.counting import count_flops, count_parameters
from compress.models.network import Backbone, Network, Statistics, probe
from compress.models.source import Source
from compress.models.timm import Timm
from compress.models.torchvision import Torchvision

ModelSource = Annotated[Cifar | Cnn | Timm | Torchvision, Field(discriminator="source")]

__all__ = [
    "Backbone",
    "Cifar",
    "Cnn",
    "ModelSource",
    "Network",
    "Source",
    "Statistics",
    "Timm",
    "Torchvision",
    "build_network",
    "check_classes",
    "count_flops",
    "count_parameters",
    "probe",
    "source_classes",
]
