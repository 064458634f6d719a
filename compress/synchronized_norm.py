"""Batch normalisation over the images of all ranks, whatever the module that asks for it.

torch.nn.SyncBatchNorm is for GPUs alone, and replacing modules by it loses what subclasses add, such as the activation
inside timm's. Here the modules stay as they are, and the function that all of them call is another one meanwhile.
"""

from __future__ import annotations

from typing import Any, NamedTuple, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules._functions import SyncBatchNorm as GpuFunction
from torch.overrides import TorchFunctionMode

from compress.ranks import gathered, summed


@final
class SynchronizedNorm(TorchFunctionMode):
    """While it is entered, batch normalisation in training mode takes its statistics from all ranks."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def _batch_norm(images: Tensor, running_mean: Tensor | None, running_var: Tensor | None, **settings: Any) -> Tensor:
    if not settings.get("training", False):
        return F.batch_norm(images, running_mean, running_var, **settings)
    weight, bias, momentum = settings.get("weight"), settings.get("bias"), settings.get("momentum", 0.1)
    eps = settings.get("eps", 1e-5)
    if images.is_cuda:
        group = dist.group.WORLD
        assert group is not None
        averages = running_mean, running_var, eps, momentum, group, group.size()
        return GpuFunction.apply(images, weight, bias, *averages)
    statistics = _statistics(images, eps)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(statistics.mean, momentum)
        running_var.lerp_(statistics.variance * (statistics.num_values / (statistics.num_values - 1)), momentum)
    return _Normalized.apply(images, weight, bias, statistics)


class _Statistics(NamedTuple):
    """Of the values of each channel on all ranks."""

    mean: Tensor
    variance: Tensor
    """Divided by the count."""
    num_values: float
    eps: float

    @property
    def scale(self) -> Tensor:
        """One over the standard deviation."""
        return (self.variance + self.eps).rsqrt()


@torch.no_grad()
def _statistics(images: Tensor, eps: float) -> _Statistics:
    """From the mean and variance of each rank: sums of squares would cancel in float32."""
    variance, mean = torch.var_mean(images.float(), _all_but_channels(images), correction=0)
    count = mean.new_tensor([images.numel() // images.shape[1]])
    counts, means, variances = gathered(torch.cat([count, mean, variance])).double().split([1, len(mean), len(mean)], 1)
    total = counts.sum()
    of_all = (counts * means).sum(dim=0) / total
    spread = (counts * (variances + (means - of_all).square())).sum(dim=0) / total
    return _Statistics(of_all.float(), spread.float(), float(total), eps)


def _all_but_channels(images: Tensor) -> list[int]:
    return [dimension for dimension in range(images.ndim) if dimension != 1]


class _Normalized(torch.autograd.Function):
    """Every image of every rank has a share in the statistics, so gradients flow through them between ranks."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: _Statistics
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.statistics = statistics
        mean, variance, _, eps = statistics
        return F.batch_norm(images, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        images, weight = ctx.saved_tensors
        statistics: _Statistics = ctx.statistics
        shape = [1, -1] + [1] * (images.ndim - 2)
        gradient = gradients[0].float()
        scale = statistics.scale.view(shape)
        normal = (images.float() - statistics.mean.view(shape)) * scale
        dimensions = _all_but_channels(images)
        own = torch.stack([gradient.sum(dimensions), (gradient * normal).sum(dimensions)])
        of_bias, of_weight = own.clone()
        means = (summed(own.double()) / statistics.num_values).float()
        change = gradient - means[0].view(shape) - normal * means[1].view(shape)
        change = change * (scale if weight is None else scale * weight.view(shape))
        if weight is None:
            return change.to(images.dtype), None, None, None
        return change.to(images.dtype), of_weight.to(weight.dtype), of_bias.to(weight.dtype), None
