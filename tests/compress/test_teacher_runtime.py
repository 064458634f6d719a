"""Every back-end answers as the teacher does, within what it states; what cannot be used is said and not used."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from compress import teacher_runtime
from compress.device import cpu_has_bfloat16
from compress.errors import CompressError, DeviceError
from compress.methods import KD
from compress.teacher_logits import OnlineTeacher
from compress.teacher_pass import ROUNDING, TeacherPass
from compress.teacher_runtime import PassSettings, fastest, prepare_teacher, runtimes
from tests.compress import toy_store

IMAGES = torch.rand(70, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
needs_bfloat16 = pytest.mark.skipif(not cpu_has_bfloat16(), reason="this CPU does not compute in bfloat16")
WAYS = [
    ("onnxruntime", "float32"),
    ("openvino", "float32"),
    pytest.param("openvino", "bfloat16", marks=needs_bfloat16),
]
EXACT: dict[str, Any] = {}


def prepared(network: nn.Module, **settings: Any) -> TeacherPass:
    return prepare_teacher(network, IMAGES, PassSettings(**settings), threads=1)


def plain(network: nn.Module, images: torch.Tensor = IMAGES) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(images)


@pytest.fixture(autouse=True)
def exported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same network exported again is the same file: tests share it."""
    export = teacher_runtime._float_entry

    def remembered(reference: Any) -> bytes:
        if not isinstance(reference.network, nn.Sequential):
            return export(reference)
        key = str(float(reference.logits.sum()))
        if key not in EXACT:
            EXACT[key] = export(reference)
        return EXACT[key]

    monkeypatch.setattr(teacher_runtime, "_float_entry", remembered)


@pytest.fixture
def taking(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[tuple[str, str], float]], None]:
    """Say how long each way takes instead of measuring."""

    def say(seconds: dict[tuple[str, str], float]) -> None:
        made: list[TeacherPass] = []

        def noted(*args: Any, **kwargs: Any) -> TeacherPass:
            made.append(TeacherPass(*args, **kwargs))
            return made[-1]

        monkeypatch.setattr(teacher_runtime, "TeacherPass", noted)

        def measured(ways: list[Any], images: torch.Tensor) -> list[float]:
            by_compute = {id(each.compute): (each.backend, each.precision) for each in made}
            return [seconds.get(by_compute.get(id(way), ("torch", "")), 1.0) for way in ways]

        monkeypatch.setattr(teacher_runtime, "_seconds_per_image", measured)

    return say


@pytest.mark.parametrize(("backend", "precision"), WAYS)
def test_the_stated_error_is_the_largest_there_is(backend: Any, precision: Any) -> None:
    network = toy_store.network()
    asked = prepared(network, backend=backend, precision=precision)
    assert (asked.backend, asked.precision, asked.num_samples) == (backend, precision, 70)
    exact = plain(network)
    differences = [float((asked(some) - plain(network, some)).abs().max()) for some in IMAGES.split(64)]
    assert asked.error == max(differences)
    if precision == "float32":
        assert asked.error <= ROUNDING * float(exact.abs().max())
    else:
        assert 1e-3 < asked.error < 0.1
    assert str(asked).startswith(f"{precision} teacher pass in {backend} ")
    assert asked.way.startswith(f"{backend} ")


@pytest.mark.parametrize(("backend", "precision"), WAYS)
@pytest.mark.parametrize("num_images", [1, 3, 64])
def test_any_number_of_images_in_any_memory_layout_is_answered(backend: Any, precision: Any, num_images: int) -> None:
    network = toy_store.network()
    asked = prepared(network, backend=backend, precision=precision)
    for images in (IMAGES[:num_images], IMAGES[:num_images].contiguous(), IMAGES.flip(3)[-num_images:]):
        logits = asked(images)
        assert logits.dtype == torch.float32
        atol = 1e-4 if precision == "float32" else 0.1
        torch.testing.assert_close(logits, plain(network, images), rtol=0, atol=atol)


@pytest.mark.parametrize(("backend", "precision"), WAYS)
def test_answers_are_not_overwritten_by_later_ones(backend: Any, precision: Any) -> None:
    asked = prepared(toy_store.network(), backend=backend, precision=precision)
    first = asked(IMAGES[:8])
    before = first.clone()
    asked(IMAGES[8:16])
    assert torch.equal(first, before)


def test_a_precision_left_open_is_taken_only_within_the_accepted_error() -> None:
    network = toy_store.network()
    strict = prepared(network, backend="openvino", precision="auto", max_error=1e-9)
    assert (strict.backend, strict.precision) == ("openvino", "float32")
    generous = prepared(network, backend="openvino", precision="auto", max_error=1e9)
    assert generous.precision == ("bfloat16" if cpu_has_bfloat16() else "float32")
    assert prepared(network, backend="onnxruntime", precision="auto").precision == "float32"


@pytest.mark.parametrize("way", [("onnxruntime", "float32"), ("openvino", "float32")], ids=lambda way: way[0])
def test_auto_takes_the_fastest(taking: Any, way: tuple[str, str]) -> None:
    taking({way: 0.5})
    chosen, ways = fastest(toy_store.network(), IMAGES, PassSettings(backend="auto"), threads=1)
    assert (chosen.backend, chosen.precision) == way
    assert {(each.backend, each.precision) for each in ways} == {
        ("torch", "float32"),
        ("onnxruntime", "float32"),
        ("openvino", "float32"),
    }
    speed = 2 if way[0] == "onnxruntime" else 1
    assert f"fastest of torch float32 1/s, onnxruntime float32 {speed}/s" in str(chosen)


@needs_bfloat16
def test_auto_leaves_out_what_is_not_exact_enough(taking: Any) -> None:
    taking({("openvino", "bfloat16"): 0.1})
    settings = PassSettings(backend="auto", precision="auto", max_error=1e9)
    chosen, ways = fastest(toy_store.network(), IMAGES, settings, threads=1)
    assert (chosen.backend, chosen.precision) == ("openvino", "bfloat16")
    assert len(ways) == 5
    strict, ways = fastest(toy_store.network(), IMAGES, settings.model_copy(update={"max_error": 1e-9}), threads=1)
    assert strict.precision == "float32"
    assert {each.precision for each in ways} == {"float32"}


def test_the_measured_speeds_are_finite_and_the_chosen_way_has_the_highest() -> None:
    chosen, ways = fastest(toy_store.network(), IMAGES, PassSettings(backend="auto"), threads=1, batch_size=16)
    best = max(ways, key=lambda way: way.images_per_second)
    assert (chosen.backend, chosen.precision) == (best.backend, best.precision)
    assert 0 < best.images_per_second < float("inf")


def test_openvino_that_is_not_installed_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(teacher_runtime, "find_spec", lambda name: None)
    with pytest.raises(CompressError, match=r"openvino is not installed; run: pip install 'compress\[openvino\]'"):
        prepared(toy_store.network(), backend="openvino")
    _, ways = fastest(toy_store.network(), IMAGES, PassSettings(backend="auto"), threads=1)
    assert {way.backend for way in ways} == {"torch", "onnxruntime"}
    assert not any("openvino" in name for name in runtimes())


class Branching(nn.Module):
    """No graph can say what it computes: it looks at the pixels first."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = images.mean(dim=(2, 3))
        return self.linear(means) if float(means.sum()) > 0 else means


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "auto"])
def test_a_teacher_that_cannot_be_exported_is_run_by_torch_which_says_why(backend: Any) -> None:
    network = Branching()
    asked = prepared(network, backend=backend)
    assert asked.backend == "torch"
    assert "the network cannot be exported to ONNX" in asked.remark
    assert "\n" not in str(asked)
    torch.testing.assert_close(asked(IMAGES), plain(network))


def test_a_back_end_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = teacher_runtime._OnnxRuntime.__call__
    monkeypatch.setattr(teacher_runtime._OnnxRuntime, "__call__", lambda self, images: answer(self, images) + 0.01)
    asked = prepared(toy_store.network(), backend="onnxruntime")
    assert asked.backend == "torch"
    assert "onnxruntime is not used: its float32 logits differ by more than rounding" in asked.remark
    _, ways = fastest(toy_store.network(), IMAGES, PassSettings(backend="auto"), threads=1)
    assert "onnxruntime" not in {way.backend for way in ways}


def test_a_back_end_of_the_cpu_is_refused_on_a_gpu() -> None:
    for backend in ("onnxruntime", "openvino"):
        with pytest.raises(DeviceError, match=f"{backend} computes on the CPU, and the teacher is on cuda; set device"):
            teacher_runtime._check_available(backend, "float32", torch.device("cuda"))


def test_bfloat16_is_refused_where_the_cpu_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_runtime, "cpu_has_bfloat16", lambda: False)
    with pytest.raises(DeviceError, match="this CPU has no bfloat16"):
        prepared(toy_store.network(), backend="openvino", precision="bfloat16")
    assert prepared(toy_store.network(), backend="openvino", precision="auto", max_error=1e9).precision == "float32"
    assert teacher_runtime._present("bfloat16") == []


def test_torch_alone_folds_and_is_measured_as_before() -> None:
    asked = prepared(toy_store.network())
    assert (asked.backend, asked.precision, asked.num_folded, asked.remark) == ("torch", "float32", 1, "")
    assert asked.way == f"torch {torch.__version__}, float32, 1 folded"


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
def test_students_learn_from_what_a_back_end_answers_online(backend: Any) -> None:
    network, nobody = toy_store.network(), torch.zeros(8, dtype=torch.int64).numpy()
    asked = prepared(network, backend=backend)
    online = OnlineTeacher(network, logits_from=asked)
    images = IMAGES[:8]
    answers = online.logits(images, nobody, nobody)
    assert answers is online.logits(images, nobody, nobody)  # students side by side ask once
    torch.testing.assert_close(answers, plain(network, images), rtol=0, atol=1e-4)
    student = torch.zeros(8, 3, requires_grad=True)
    KD()(student, answers, torch.zeros(8, dtype=torch.int64)).total.backward()
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())
