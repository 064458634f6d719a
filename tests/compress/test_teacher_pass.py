"""Shortcuts of the teacher's pass: what they change is measured, and a wrong one is not taken."""

import copy

import pytest
import torch
from torch import nn

from compress.device import cpu_has_bfloat16
from compress.errors import DeviceError, ModelError
from compress.models import Cifar, Statistics, build_network
from compress.teacher_logits import OnlineTeacher
from compress.teacher_pass import _tensorfloat32, choose_precision, fold_batch_norms, prepare_pass
from tests.compress import toy_store

IMAGES = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def plain(network: nn.Module, images: torch.Tensor = IMAGES) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(images)


class UsedTwice(nn.Module):
    """The convolution's result goes around the normalisation as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.norm.running_mean.fill_(2.0)  # type: ignore[union-attr]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.conv(images)
        return (self.norm(maps) + maps).mean(dim=(2, 3))


def test_a_normalisation_behind_a_convolution_becomes_part_of_it() -> None:
    network = toy_store.network()
    before = copy.deepcopy(network.state_dict())
    folded, num_folded = fold_batch_norms(network.eval(), IMAGES[:1])
    assert num_folded == 1
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(plain(folded), plain(network), rtol=0, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_real_network_with_shortcuts_is_folded_to_rounding() -> None:
    statistics = Statistics(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    network = build_network(Cifar(name="resnet8"), num_classes=3, image_size=(8, 8), statistics=statistics)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    ready = prepare_pass(network, IMAGES)
    assert ready.num_folded == 9
    torch.testing.assert_close(ready(IMAGES), plain(network), rtol=0, atol=1e-4 * float(plain(network).abs().max()))


def test_a_wrong_folding_is_noticed_and_not_used() -> None:
    network = UsedTwice()
    folded, num_folded = fold_batch_norms(network.eval(), IMAGES[:1])
    assert num_folded == 1
    assert not torch.allclose(plain(folded), plain(network), atol=0.1)
    ready = prepare_pass(network, IMAGES)
    assert ready.num_folded == 0
    assert ready.error == 0
    assert torch.equal(ready(IMAGES), plain(network))


def test_the_stated_error_is_the_largest_on_the_samples() -> None:
    network = toy_store.network()
    ready = prepare_pass(network, IMAGES, precision="bfloat16")
    assert ready.precision == "bfloat16"
    assert ready.error == float((ready(IMAGES) - plain(network)).abs().max()) > 1e-3
    assert str(ready) == (
        "bfloat16 teacher pass, 1 batch normalisations folded: "
        f"largest logit difference from plain float32 {ready.error:.2g} on 8 samples"
    )


def test_answers_are_float32_in_every_precision() -> None:
    for precision in ("float32", "bfloat16"):
        assert prepare_pass(toy_store.network(), IMAGES, precision=precision)(IMAGES).dtype == torch.float32


def test_auto_takes_a_shortcut_only_within_the_accepted_error() -> None:
    strict = prepare_pass(toy_store.network(), IMAGES, precision="auto", max_error=1e-9)
    assert (strict.precision, strict.error < 1e-4) == ("float32", True)
    generous = prepare_pass(toy_store.network(), IMAGES, precision="auto", max_error=1e9)
    assert generous.precision == ("bfloat16" if cpu_has_bfloat16() else "float32")


def test_a_teacher_that_runs_online_is_measured_the_same_way() -> None:
    network = toy_store.network()
    precision, error = choose_precision(network, IMAGES, precision="bfloat16")
    nobody = torch.zeros(8, dtype=torch.int64).numpy()
    rounded = OnlineTeacher(network, precision).logits(IMAGES, nobody, nobody)
    assert (precision, error) == ("bfloat16", float((rounded - plain(network)).abs().max()))
    assert choose_precision(network, IMAGES, precision="auto", max_error=1e-9) == ("float32", 0.0)


def test_tensorfloat32_is_refused_where_there_is_none() -> None:
    with pytest.raises(DeviceError, match="tensorfloat32 needs an NVIDIA GPU"):
        prepare_pass(toy_store.network(), IMAGES, precision="tensorfloat32")


def test_the_tensorfloat32_switches_are_as_before_afterwards() -> None:
    switches = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    for enabled, inside in ((True, "tf32"), (False, "ieee")):
        with _tensorfloat32(enabled):
            assert [switch.fp32_precision for switch in switches] == [inside, inside]
        assert [switch.fp32_precision for switch in switches] == before
    assert torch.backends.cudnn.allow_tf32  # torch refuses to say so when old and new switches disagree


def test_a_teacher_with_logits_that_are_not_finite_is_refused() -> None:
    with pytest.raises(ModelError, match="not finite"):
        prepare_pass(toy_store.network(scale=float("nan")), IMAGES)


def test_the_teacher_is_frozen_and_its_training_mode_is_an_error() -> None:
    network = UsedTwice().train()  # nothing of it can be folded: it is run itself
    ready = prepare_pass(network, IMAGES)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    network.train()
    with pytest.raises(AssertionError, match="training mode"):
        ready(IMAGES)


def test_answers_can_be_kept_for_a_backward_pass() -> None:
    answers = prepare_pass(toy_store.network(), IMAGES)(IMAGES)
    student = torch.ones_like(answers, requires_grad=True)
    (student * answers).sum().backward()
    assert torch.equal(student.grad, answers)


def test_an_online_teacher_with_a_precision_computes_in_it_whatever_surrounds_it() -> None:
    network, nobody = toy_store.network(), torch.zeros(8, dtype=torch.int64).numpy()
    exact, rounded = plain(network), {}
    for precision in (None, "float32", "bfloat16"):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "float32"):
            rounded[precision] = OnlineTeacher(network, precision).logits(IMAGES, nobody, nobody)
    assert torch.equal(rounded[None], exact)
    assert torch.equal(rounded["float32"], exact)
    assert rounded["bfloat16"].dtype == torch.float32
    assert 1e-3 < float((rounded["bfloat16"] - exact).abs().max()) < 0.1 * float(exact.abs().max())
