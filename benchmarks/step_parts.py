"""Where the time of a training step goes, from torch's profiler."""

from __future__ import annotations

from typing import Any

from torch.profiler import ProfilerActivity, profile

from compress.batches import TrainingData
from compress.train import EpochReport, Trainee, train_together

KERNELS = ("mkldnn_convolution", "convolution_backward", "cudnn_convolution", "addmm", "aten::mm")
OPTIMIZER = ("_fused_sgd", "_fused_adamw", "Optimizer.")
NORMALISATION = ("batch_norm",)
LOSS = ("log_softmax", "nll_loss", "cross_entropy", "logsumexp")


def parts_of_a_step(trainee: Trainee, data: TrainingData) -> dict[str, Any]:
    """Shares of an epoch's CPU time by kind of operation; what is no operation of torch's is data and Python."""
    reports = train_together([trainee], data, seed=0)
    _one_epoch(reports)  # warm
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        _one_epoch(reports)
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    total = sum(times.values())
    shares = {
        "convolution_and_matrix": _share(times, KERNELS) / total,
        "normalisation": _share(times, NORMALISATION) / total,
        "optimizer": _share(times, OPTIMIZER) / total,
        "loss": _share(times, LOSS) / total,
    }
    shares["other"] = 1.0 - sum(shares.values())
    largest = sorted(times.items(), key=lambda item: -item[1])[:10]
    return {
        "shares": {name: round(value, 4) for name, value in shares.items()},
        "largest": {name: round(value / total, 4) for name, value in largest},
    }


def _one_epoch(reports: Any) -> None:
    for _, report in reports:
        if isinstance(report, EpochReport):
            return


def _share(times: dict[str, float], names: tuple[str, ...]) -> float:
    return sum(value for key, value in times.items() if any(name in key for name in names))
