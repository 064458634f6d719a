"""How the teacher is run when its logits are all that is wanted: each shortcut measured against plain float32.

Shortcuts are lower precision and batch normalisations folded into the convolutions before them. Folding changes
rounding only (3e-6 for logits up to 13) and saves 3 to 15 % of the time on a CPU. bfloat16 halves the time and is
off by 0.05 for such logits, with the same class first for 98 to 99 % of the images; what float16 storage and a step of
uint8 storage lose is of the same size, and students were not seen to suffer from errors many times larger.
"""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.hooks import RemovableHandle

from compress.device import autocast, place, resolve_precision
from compress.errors import DeviceError, ModelError
from compress.types import FloatImages, Logits

PassPrecision = Literal["auto", "float32", "tensorfloat32", "bfloat16"]
ResolvedPrecision = Literal["float32", "tensorfloat32", "bfloat16"]

SAMPLES_PER_STEP = 64
ROUNDING = 1e-4
"""A folded network whose logits differ by more than this share of the largest was folded wrongly."""


@final
class TeacherPass:
    """A frozen network ready to be asked for logits, and how exact it is. Made by `prepare_pass`."""

    def __init__(
        self, network: nn.Module, *, precision: ResolvedPrecision, num_folded: int, error: float, num_samples: int
    ) -> None:
        self._network = network
        self.precision: ResolvedPrecision = precision
        self.num_folded = num_folded
        """Batch normalisations that became part of a convolution."""
        self.error = error
        """Largest difference of a logit from plain float32 on the samples."""
        self.num_samples = num_samples

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return _device(self._network)

    @property
    def network(self) -> nn.Module:
        """What is run; not the network it was made from where normalisations were folded."""
        return self._network

    def __call__(self, images: FloatImages) -> Logits:
        """Float32 logits on the images' device; of a GPU, perhaps not yet computed."""
        assert not self._network.training, "a teacher in training mode uses and changes batch statistics"
        return _ask(self._network, images, self.precision)

    def __str__(self) -> str:
        folded = f", {self.num_folded} batch normalisations folded" if self.num_folded else ""
        return (
            f"{self.precision} teacher pass{folded}: largest logit difference from plain float32 "
            f"{self.error:.2g} on {self.num_samples} samples"
        )


def prepare_pass(
    network: nn.Module, images: FloatImages, *, precision: PassPrecision = "float32", max_error: float = 0.1
) -> TeacherPass:
    """Freeze a network and find the fastest way to run it that is exact enough, measured on sample images.

    `auto` takes the fastest precision of the device whose largest logit difference from plain float32 is at most
    `max_error`; another choice is taken as it is. The images must be on the network's device.

    Raises:
        DeviceError: the device does not have this precision.
        ModelError: the logits are not finite.
    """
    network = network.eval().requires_grad_(False)
    exact = _exact(network, images)
    folded, num_folded = fold_batch_norms(network, images[:1])
    rounding = _largest_difference(_ask_in_steps(folded, images, "float32"), exact)
    if not rounding <= ROUNDING * float(exact.abs().max()):
        folded, num_folded, rounding = network, 0, 0.0
    chosen, error = _chosen(folded, images, exact, precision=precision, max_error=max_error)
    if chosen == "float32":
        error = rounding
    return TeacherPass(folded, precision=chosen, num_folded=num_folded, error=error, num_samples=len(images))


def choose_precision(
    network: nn.Module, images: FloatImages, *, precision: PassPrecision, max_error: float = 0.1
) -> tuple[ResolvedPrecision, float]:
    """What `prepare_pass` would compute in, for a teacher that runs while students train, and the error measured.

    Raises:
        DeviceError: the device does not have this precision.
        ModelError: the logits are not finite.
    """
    network = network.eval().requires_grad_(False)
    return _chosen(network, images, _exact(network, images), precision=precision, max_error=max_error)


def fold_batch_norms(network: nn.Module, images: FloatImages) -> tuple[nn.Module, int]:
    """A copy in which each batch normalisation directly behind a convolution is part of it, and their number.

    What follows what is seen by running the network on images. A convolution whose result somebody else uses as well
    can not be told from the others: compare the answers. Features between the two are those behind the normalisation.
    """
    pairs = _conv_norm_pairs(network, images)
    if not pairs:
        return network, 0
    folded = copy.deepcopy(network)
    for conv_name, norm_name in pairs:
        conv, norm = folded.get_submodule(conv_name), folded.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        folded.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
        folded.set_submodule(norm_name, nn.Identity())
    return place(folded, images.device), len(pairs)


@contextmanager
def computing_in(precision: ResolvedPrecision, device: torch.device) -> Generator[None]:
    """Convolutions and matrix products in this precision, whatever the surrounding code has set."""
    is_gpu = device.type == "cuda"
    with (
        autocast(device, torch.bfloat16 if precision == "bfloat16" else torch.float32),
        _tensorfloat32(precision != "float32") if is_gpu else nullcontext(),
    ):
        yield


@contextmanager
def _tensorfloat32(enabled: bool) -> Generator[None]:
    """Whether a GPU rounds the factors of float32 products to 10 bits; torch does so in convolutions by default."""
    convolutions: Any = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]  made at run time
    switches = (convolutions, torch.backends.cuda.matmul)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "tf32" if enabled else "ieee"
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def _exact(network: nn.Module, images: FloatImages) -> Tensor:
    exact = _ask_in_steps(network, images, "float32")
    if not bool(exact.isfinite().all()):
        raise ModelError("the teacher gives logits that are not finite; check its weights and normalisation")
    return exact


def _chosen(
    network: nn.Module, images: FloatImages, exact: Tensor, *, precision: PassPrecision, max_error: float
) -> tuple[ResolvedPrecision, float]:
    for shortcut in _shortcuts(precision, images.device):
        error = _largest_difference(_ask_in_steps(network, images, shortcut), exact)
        if precision != "auto" or error <= max_error:
            return shortcut, error
    return "float32", 0.0


def _shortcuts(precision: PassPrecision, device: torch.device) -> list[ResolvedPrecision]:
    """What to try before float32, fastest first."""
    has_tensorfloat32 = device.type == "cuda" and torch.cuda.is_tf32_supported()
    if precision == "tensorfloat32" and not has_tensorfloat32:
        raise DeviceError(
            "precision: tensorfloat32 needs an NVIDIA GPU of 2020 or later; use float32, bfloat16 or auto here"
        )
    if precision == "float32":
        return []
    if precision != "auto":
        return [precision]
    found: list[ResolvedPrecision] = ["bfloat16"] if resolve_precision("auto", device) == torch.bfloat16 else []
    return [*found, "tensorfloat32"] if has_tensorfloat32 else found


@torch.inference_mode()
def _ask(network: nn.Module, images: FloatImages, precision: ResolvedPrecision) -> Logits:
    with computing_in(precision, images.device):
        return network(images).float()


def _ask_in_steps(network: nn.Module, images: FloatImages, precision: ResolvedPrecision) -> Tensor:
    return torch.cat([_ask(network, some, precision) for some in images.split(SAMPLES_PER_STEP)])


def _largest_difference(logits: Tensor, exact: Tensor) -> float:
    return float((logits - exact).abs().max())


@torch.no_grad()
def _conv_norm_pairs(network: nn.Module, images: FloatImages) -> list[tuple[str, str]]:
    """Names of convolutions and of the batch normalisations that took their results; each was run once."""
    produced: list[tuple[Tensor, str]] = []
    taken: list[tuple[Tensor, str]] = []

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def note(module: nn.Module, inputs: tuple[Tensor, ...], result: Tensor) -> None:
            if isinstance(module, nn.Conv2d):
                produced.append((result, name))
            else:
                taken.append((inputs[0], name))

        return module.register_forward_hook(note)

    handles = [watch(name, module) for name, module in network.named_modules() if _can_be_folded(module)]
    network(images)
    for handle in handles:
        handle.remove()
    # The tensors are kept until here, so that none has the identity of one that is gone.
    makers = {id(tensor): name for tensor, name in produced}
    convs, norms = [name for _, name in produced], [name for _, name in taken]
    pairs = [(makers[id(tensor)], name) for tensor, name in taken if id(tensor) in makers]
    return [(conv, norm) for conv, norm in pairs if convs.count(conv) == 1 == norms.count(norm)]


def _can_be_folded(module: nn.Module) -> bool:
    # Not subclasses: timm's, for one, apply an activation as well.
    if type(module) is nn.BatchNorm2d:
        return module.running_mean is not None
    return type(module) is nn.Conv2d


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
