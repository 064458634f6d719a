"""Which device computes, and in which precision."""

from __future__ import annotations

import ctypes
import platform
from contextlib import AbstractContextManager
from typing import Literal, TypeVar

import torch
from torch import nn

from compress.errors import DeviceError

M = TypeVar("M", bound=nn.Module)

DeviceName = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h


def resolve_device(name: DeviceName) -> torch.device:
    """The device to compute on; `auto` takes a GPU where torch sees one.

    Raises:
        DeviceError: `cuda` was asked for and torch sees no GPU.
    """
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise DeviceError(
            "device: 'cuda' was asked for, but torch sees no GPU here; set device: auto or cpu, "
            "or install a driver and a CUDA build of torch (compress doctor shows what is there)"
        )
    return torch.device("cuda" if has_gpu and name != "cpu" else "cpu")


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of matrix products and convolutions; `auto` takes bfloat16 where the device computes it natively.

    Raises:
        DeviceError: float16 was asked for on a CPU, where torch trains unstably and slowly in it.
    """
    if precision == "auto":
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_bfloat16()
        return torch.bfloat16 if native else torch.float32
    if precision == "float16" and device.type == "cpu":
        raise DeviceError("precision: float16 trains on a GPU only; use bfloat16, float32 or auto on this CPU")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Mixed precision for the forward pass; does nothing in float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 numbers itself; elsewhere it is emulated and slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported())  # pyright: ignore[reportPrivateUsage]  torch offers no other way


def place(network: M, device: torch.device) -> M:
    """Move a network to a device, its weights in channels-last memory, the layout of stored images."""
    return network.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def keep_freed_memory() -> None:
    """Let the C library keep for the next step what a training step on a CPU frees; for the whole process.

    By default glibc returns large blocks to the system, which has to map and clear them again a moment later: a fifth
    of the time of a step at batch size 256. Does nothing where the C library is another one.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, 2**30)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
