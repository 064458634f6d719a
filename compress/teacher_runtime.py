"""A frozen teacher in ONNX Runtime or OpenVINO, where a CPU answers faster there than in torch.

Both are given the network as it is exported. Beside torch's own folded float32 pass, on one core of an AMD EPYC, two
teachers of the CIFAR literature (`python -m benchmarks.teacher`, torch 2.14.1, onnxruntime 1.31.1, openvino 2026.4.1):
batches of 64, float32 1.05 to 1.3 times as fast in either, bfloat16 2.0 times in torch and 2.1 to 2.5 times in
OpenVINO; batches of 256, 1.4 to 1.5 and 2.8 to 2.9 times, because they slow torch alone down.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor, nn

from compress.device import cpu_has_bfloat16
from compress.errors import ArtifactError, CompressError, DeviceError, ModelError
from compress.export import ExportSettings, export_onnx
from compress.export.float_forms import write_float_entry
from compress.onnx_session import open_session
from compress.settings import NonNegativeFloat, PositiveFloat, Settings
from compress.teacher_pass import (
    Backend,
    PassBackend,
    PassPrecision,
    Reference,
    ResolvedPrecision,
    TeacherPass,
    torch_passes,
)
from compress.types import FloatImages

Exported = Literal["onnxruntime", "openvino"]
TIMED_ROUNDS = 3
TIMED_SECONDS = 30.0
"""Further rounds are left out once timing took this long."""


class PassSettings(Settings):
    """How a teacher is to be run."""

    backend: PassBackend = "torch"
    """What computes; auto: the fastest measured here that is exact enough."""
    precision: PassPrecision = "float32"
    """What it computes in; auto: the fastest that is exact enough."""
    max_error: PositiveFloat = 0.1
    """With precision: auto, the largest logit difference from plain float32 that is accepted."""


class TimedWay(Settings):
    """One way to run a teacher, as it was measured."""

    backend: Backend
    precision: ResolvedPrecision
    images_per_second: NonNegativeFloat
    error: NonNegativeFloat
    """Largest difference of a logit from plain float32 on the samples."""


def prepare_teacher(
    network: nn.Module, images: FloatImages, settings: PassSettings, *, threads: int, batch_size: int = 64
) -> TeacherPass:
    """Freeze a network and make it ready in the back-end and precision asked for, measured on sample images.

    A network that a back-end does not take, or answers otherwise in float32, is run by torch; the pass's remark says
    why. `backend: auto` times all ways on batches of `batch_size` with that many CPU threads: see `fastest`.

    Raises:
        CompressError: OpenVINO was asked for and is not installed.
        DeviceError: the device does not have this precision or back-end.
        ModelError: the logits are not finite.
    """
    if settings.backend == "auto":
        return fastest(network, images, settings, threads=threads, batch_size=batch_size)[0]
    reference = Reference(network, images)
    if settings.backend == "torch":
        return torch_passes(reference, settings.precision, settings.max_error)[0]
    _check_available(settings.backend, settings.precision, images.device)
    try:
        found = _exported_passes(reference, _float_entry(reference), settings.backend, settings, threads=threads)
        reason = "its float32 logits differ by more than rounding"
    except (ModelError, ArtifactError) as error:
        found, reason = [], str(error)
    if found:
        return found[0]
    return _by_torch(reference, settings, f"{settings.backend} is not used: {reason}")


def fastest(
    network: nn.Module, images: FloatImages, settings: PassSettings, *, threads: int, batch_size: int = 64
) -> tuple[TeacherPass, tuple[TimedWay, ...]]:
    """The fastest way to run a network that is exact enough, and what was measured of each.

    Float32 ways must differ by rounding only, lower precisions by at most `max_error` where `precision: auto` left
    the choice. Times depend on what else the machine does: note which way was taken if it has to be taken again.

    Raises:
        DeviceError: no back-end of this device has this precision.
        ModelError: the logits are not finite.
    """
    reference = Reference(network, images)
    passes = torch_passes(reference, settings.precision, settings.max_error)
    remark = ""
    if images.device.type == "cpu":
        try:
            content = _float_entry(reference)
            for backend in _present(settings.precision):
                passes += _exported_passes(reference, content, backend, settings, threads=threads)
        except (ModelError, ArtifactError) as error:
            remark = f"only torch was tried: {error}"
    seconds = _seconds_per_image([each.compute for each in passes], images[:batch_size])
    ways = tuple(
        TimedWay(backend=each.backend, precision=each.precision, images_per_second=1 / taken, error=each.error)
        for each, taken in zip(passes, seconds, strict=True)
    )
    chosen = passes[int(np.argmin(seconds))]
    return _with_remark(chosen, remark or f"fastest of {_listed(ways)}"), ways


def runtimes() -> tuple[str, ...]:
    """What could compute here, with its versions."""
    names = ["torch", "onnxruntime", *(["openvino"] if find_spec("openvino") else [])]
    return tuple(f"{name} {version(name)}" for name in names)


def _listed(ways: Sequence[TimedWay]) -> str:
    return ", ".join(f"{way.backend} {way.precision} {way.images_per_second:.4g}/s" for way in ways)


def _present(precision: PassPrecision) -> list[Exported]:
    """Back-ends besides torch that are installed and have this precision."""
    found: list[Exported] = ["onnxruntime"] if precision in ("auto", "float32") else []
    if find_spec("openvino") is None or precision == "tensorfloat32":
        return found
    return found if precision == "bfloat16" and not cpu_has_bfloat16() else [*found, "openvino"]


def _check_available(backend: Exported, precision: PassPrecision, device: torch.device) -> None:
    if backend == "openvino" and find_spec("openvino") is None:
        raise CompressError(
            "teacher_logits.backend: openvino is not installed; run: pip install 'compress[openvino]', "
            "or set backend: torch or auto"
        )
    if device.type != "cpu":
        raise DeviceError(
            f"teacher_logits.backend: {backend} computes on the CPU, and the teacher is on {device.type}; "
            "set device: cpu, or backend: torch or auto"
        )
    if precision == "bfloat16" and not cpu_has_bfloat16():
        raise DeviceError(f"this CPU has no bfloat16, so {backend} would be slower; set precision: float32 or auto")


def _exported_passes(
    reference: Reference, content: bytes, backend: Exported, settings: PassSettings, *, threads: int
) -> list[TeacherPass]:
    """All ways to run an exported network in a back-end that are exact enough, the lowest precision first."""
    found: list[TeacherPass] = []
    for precision in _precisions(backend, settings.precision):
        engine = _Openvino(content, precision, threads) if backend == "openvino" else _OnnxRuntime(content, threads)
        error = reference.error(engine)
        is_asked_for = precision == settings.precision != "float32"
        if reference.is_rounding(error) if precision == "float32" else is_asked_for or error <= settings.max_error:
            found.append(
                TeacherPass(
                    engine,
                    precision,
                    error,
                    len(reference.images),
                    torch.device("cpu"),
                    backend=backend,
                    runtime=f"{backend} {version(backend)}",
                )
            )
    return found


def _precisions(backend: Exported, asked: PassPrecision) -> list[ResolvedPrecision]:
    if asked != "auto":
        return [asked]
    has_bfloat16 = backend == "openvino" and cpu_has_bfloat16()
    return ["bfloat16", "float32"] if has_bfloat16 else ["float32"]


def _by_torch(reference: Reference, settings: PassSettings, remark: str) -> TeacherPass:
    return _with_remark(torch_passes(reference, settings.precision, settings.max_error)[0], remark)


def _with_remark(chosen: TeacherPass, remark: str) -> TeacherPass:
    return replace(chosen, remark=remark)


def _float_entry(reference: Reference) -> bytes:
    """The network as an ONNX file that takes float32 images (B 3 H W) in [0, 1].

    Raises:
        ModelError: it cannot be exported.
    """
    height, width = reference.images.shape[2:]
    classes: list[JsonValue] = [str(number) for number in range(reference.logits.shape[1])]
    with tempfile.TemporaryDirectory(prefix="compress-teacher-") as folder:
        stored, taken = Path(folder) / "pixels.onnx", Path(folder) / "floats.onnx"
        export_onnx(
            reference.network,
            stored,
            image_size=(height, width),
            settings=ExportSettings(),
            metadata={"classes": classes},
        )
        write_float_entry(stored, taken)
        return taken.read_bytes()


def _seconds_per_image(ways: Sequence[Callable[[FloatImages], Tensor]], images: FloatImages) -> list[float]:
    """The least time of each way in a few rounds, in which all take turns; the first call of each does not count."""
    taken = [float("inf")] * len(ways)
    for way in ways:
        _seconds(way, images)
    deadline = time.perf_counter() + TIMED_SECONDS
    for number in range(TIMED_ROUNDS):
        if number and time.perf_counter() > deadline:
            break
        taken = [min(before, _seconds(way, images)) for before, way in zip(taken, ways, strict=True)]
    return [seconds / len(images) for seconds in taken]


def _seconds(way: Callable[[FloatImages], Tensor], images: FloatImages) -> float:
    started = time.perf_counter()
    way(images).cpu()
    return time.perf_counter() - started


def _as_array(images: FloatImages) -> np.ndarray:
    return images.detach().contiguous().numpy()


@final
class _OnnxRuntime:
    """A session on an exported network, in float32."""

    def __init__(self, content: bytes, threads: int) -> None:
        self._session = open_session(Path("teacher.onnx"), content, threads=threads, provider="CPUExecutionProvider")

    def __call__(self, images: FloatImages) -> Tensor:
        (logits,) = self._session.run(["logits"], {"image": _as_array(images)})
        assert isinstance(logits, np.ndarray)
        return torch.from_numpy(logits)


@final
class _Openvino:
    """A compiled network; in bfloat16 its weights and products are, and its logits are float32."""

    def __init__(self, content: bytes, precision: ResolvedPrecision, threads: int) -> None:
        import openvino

        hint = {"float32": "f32", "bfloat16": "bf16"}[precision]
        options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": hint}
        try:
            core = openvino.Core()
            compiled: Any = core.compile_model(core.read_model(model=content), "CPU", options)
        except RuntimeError as error:  # the only kind that OpenVINO raises
            reason = " ".join(str(error).split())
            raise ModelError(f"OpenVINO refuses the exported teacher ({reason}); set backend: torch") from error
        self._request = compiled.create_infer_request()

    def __call__(self, images: FloatImages) -> Tensor:
        answers = self._request.infer({0: _as_array(images)}, share_inputs=True)
        return torch.from_numpy(answers[0])
