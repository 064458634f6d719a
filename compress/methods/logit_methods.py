"""The methods that compare logits and nothing else: the teacher's stored answers are enough for them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from compress.methods.dist import DIST
from compress.methods.dkd import DKD
from compress.methods.kd import KD
from compress.methods.nkd import NKD
from compress.methods.tf_kd_self import TfKDSelf
from compress.methods.ttm import TTM
from compress.methods.wttm import WTTM

LogitMethod = Annotated[KD | TTM | WTTM | NKD | DKD | DIST | TfKDSelf, Field(discriminator="name")]
