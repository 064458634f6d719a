"""Devices and precisions that are there, and clear words for those that are not."""

import pytest
import torch

from compress.device import resolve_device, resolve_precision
from compress.errors import DeviceError


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_asking_for_a_gpu_where_there_is_none_says_what_to_do() -> None:
    with pytest.raises(DeviceError, match="device: auto or cpu"):
        resolve_device("cuda")


def test_auto_takes_what_is_there() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu").type == "cpu"


def test_float16_on_a_cpu_is_refused() -> None:
    with pytest.raises(DeviceError, match="bfloat16, float32 or auto"):
        resolve_precision("float16", torch.device("cpu"))


def test_auto_precision_is_a_precision_the_cpu_has() -> None:
    native = torch.cpu._is_avx512_bf16_supported()
    assert resolve_precision("auto", torch.device("cpu")) == (torch.bfloat16 if native else torch.float32)
