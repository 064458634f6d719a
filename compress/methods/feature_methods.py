"""The methods that compare features and nothing else; each can also be a part of a combination."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from compress.methods.crd import CRD
from compress.methods.itrd import ITRD
from compress.methods.vitkd import ViTKD

SingleFeatureMethod = Annotated[CRD | ITRD | ViTKD, Field(discriminator="name")]
