"""How the teacher is run when its logits are all that is wanted: each shortcut measured against plain float32.

Shortcuts are lower precision, batch normalisations folded into the convolutions before them, and other back-ends
(`teacher_runtime`). Folding changes rounding only (3e-6 for logits up to 13) and saves 3 to 15 % of the time on a CPU.
bfloat16 halves the time and is off by 0.05 for such logits, with the same class first for 98 to 99 % of the images;
what float16 storage and a step of uint8 storage lose is of the same size, and students were not seen to suffer from
errors many times larger.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.hooks import RemovableHandle

from compress.device import autocast, place, resolve_precision
from compress.errors import DeviceError, ModelError
from compress.types import FloatImages, Logits

Backend = Literal["torch", "onnxruntime", "openvino"]
PassBackend = Literal["auto", "torch", "onnxruntime", "openvino"]
PassPrecision = Literal["auto", "float32", "tensorfloat32", "bfloat16"]
ResolvedPrecision = Literal["float32", "tensorfloat32", "bfloat16"]

SAMPLES_PER_STEP = 64
ROUNDING = 1e-4
"""A float32 shortcut whose logits differ by more than this share of the largest computes something else."""


@final
@dataclass(frozen=True, eq=False)
class TeacherPass:
    """A frozen network ready to be asked for logits, and how exact it is. Made by `prepare_pass`, `prepare_teacher`."""

    compute: Callable[[FloatImages], Logits] = field(repr=False)
    """Float32 logits on the images' device."""
    precision: ResolvedPrecision
    error: float
    """Largest difference of a logit from plain float32 on the samples."""
    num_samples: int
    device: torch.device
    """Where images go in and logits come out."""
    num_folded: int = 0
    """Batch normalisations that torch was relieved of; other back-ends fold by themselves, uncounted."""
    backend: Backend = "torch"
    runtime: str = f"torch {torch.__version__}"
    """What computes, with its version."""
    remark: str = ""
    """Why this way was taken, where that is not plain."""

    def __call__(self, images: FloatImages) -> Logits:
        """Float32 logits on the images' device; of a GPU, perhaps not yet computed."""
        return self.compute(images)

    @property
    def way(self) -> str:
        """What decides the last bits of its answers, in a few words."""
        return f"{self.runtime}, {self.precision}" + (f", {self.num_folded} folded" if self.num_folded else "")

    def __str__(self) -> str:
        engine = "" if self.backend == "torch" else f" in {self.runtime}"
        folded = f", {self.num_folded} batch normalisations folded" if self.num_folded else ""
        remark = f"; {self.remark}" if self.remark else ""
        return (
            f"{self.precision} teacher pass{engine}{folded}: largest logit difference from plain float32 "
            f"{self.error:.2g} on {self.num_samples} samples{remark}"
        )


@final
class Reference:
    """A frozen teacher's plain float32 logits of sample images, on which shortcuts are measured.

    Raises:
        ModelError: the logits are not finite.
    """

    def __init__(self, network: nn.Module, images: FloatImages) -> None:
        self.network = network.eval().requires_grad_(False)
        self.images = images
        self.logits = _in_steps(_in_torch(self.network, "float32"), images)
        if not bool(self.logits.isfinite().all()):
            raise ModelError("the teacher gives logits that are not finite; check its weights and normalisation")

    def error(self, compute: Callable[[FloatImages], Logits]) -> float:
        """Largest difference of a logit; the images are given in batches of 64."""
        return float((_in_steps(compute, self.images) - self.logits).abs().max())

    def is_rounding(self, error: float) -> bool:
        """Whether a difference is what another order of the same float32 sums makes."""
        return error <= ROUNDING * float(self.logits.abs().max())

    def folded(self) -> tuple[nn.Module, int, float]:
        """The network with its batch normalisations folded, their number and the difference that makes.

        The network itself where folding goes wrong.
        """
        folded, num_folded = fold_batch_norms(self.network, self.images[:1])
        rounding = self.error(_in_torch(folded, "float32"))
        return (folded, num_folded, rounding) if self.is_rounding(rounding) else (self.network, 0, 0.0)


def prepare_pass(
    network: nn.Module, images: FloatImages, *, precision: PassPrecision = "float32", max_error: float = 0.1
) -> TeacherPass:
    """Freeze a network and find the fastest way to run it in torch that is exact enough, measured on sample images.

    `auto` takes the fastest precision of the device whose largest logit difference from plain float32 is at most
    `max_error`; another choice is taken as it is. The images must be on the network's device.

    Raises:
        DeviceError: the device does not have this precision.
        ModelError: the logits are not finite.
    """
    return torch_passes(Reference(network, images), precision, max_error)[0]


def torch_passes(reference: Reference, precision: PassPrecision, max_error: float) -> list[TeacherPass]:
    """All ways to run a network in torch that `precision` allows, the one with the lowest precision first.

    Raises:
        DeviceError: the device does not have this precision.
    """
    network, num_folded, rounding = reference.folded()
    device = reference.images.device
    passes: list[TeacherPass] = []
    for shortcut in _shortcuts(precision, device):
        compute = _in_torch(network, shortcut)
        error = reference.error(compute)
        if precision != "auto" or error <= max_error:
            passes.append(TeacherPass(compute, shortcut, error, len(reference.images), device, num_folded))
    if precision in ("auto", "float32"):
        compute = _in_torch(network, "float32")
        passes.append(TeacherPass(compute, "float32", rounding, len(reference.images), device, num_folded))
    return passes


def choose_precision(
    network: nn.Module, images: FloatImages, *, precision: PassPrecision, max_error: float = 0.1
) -> tuple[ResolvedPrecision, float]:
    """What torch computes a teacher's features in while students train, and the error of its logits.

    `auto` is resolved as in `prepare_pass`; nothing is folded, so that features are those of the network as it is.

    Raises:
        DeviceError: the device does not have this precision.
        ModelError: the logits are not finite.
    """
    reference = Reference(network, images)
    for shortcut in _shortcuts(precision, images.device):
        error = reference.error(_in_torch(reference.network, shortcut))
        if precision != "auto" or error <= max_error:
            return shortcut, error
    return "float32", 0.0


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


def _in_torch(network: nn.Module, precision: ResolvedPrecision) -> Callable[[FloatImages], Logits]:
    # Not in inference mode: a loss keeps the answers for its backward pass, and torch refuses that of such tensors.
    @torch.no_grad()
    def compute(images: FloatImages) -> Logits:
        assert not network.training, "a teacher in training mode uses and changes batch statistics"
        with computing_in(precision, images.device):
            return network(images).float()

    return compute


def _in_steps(compute: Callable[[FloatImages], Logits], images: FloatImages) -> Tensor:
    return torch.cat([compute(some) for some in images.split(SAMPLES_PER_STEP)])


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
