"""Quantisation-aware training: it rounds as the file will, it trains, and the file runs as integers."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from compress.batches import TrainingData
from compress.data.prepared import ArraySplit
from compress.data.view_schedule import ViewSettings
from compress.data.views import NoAugmentation
from compress.errors import DataError, ModelError
from compress.evaluate import agreement
from compress.export import ExportSettings
from compress.methods import KD
from compress.optimization import SGD
from compress.quantize.qat import QatNetwork, QatSettings, quantization_aware
from compress.quantize.qat_file import export_quantization_aware
from compress.quantize.qat_layers import ActivationQuantizer, BatchNorm, QuantizedLayer
from compress.quantize.saturation import write_without_vnni
from compress.runtime import load_predictor
from compress.teacher_logits import OnlineTeacher
from compress.torch_predictor import TorchPredictor
from compress.train import train_epochs
from compress.training_state import EpochReport, TrainSettings, new_training_state
from tests.compress.quantize.conftest import CLASSES, SIZE, Trained, calibration

CPU = torch.device("cpu")


def rounded(trained: Trained, split: ArraySplit, **settings: object) -> QatNetwork:
    return quantization_aware(
        trained.network,
        image_size=SIZE,
        calibration=calibration(split),
        settings=QatSettings.model_validate(settings),
    )


def export(network: QatNetwork, path: Path):
    return export_quantization_aware(
        network, path, image_size=SIZE, settings=ExportSettings(), metadata={"classes": list(CLASSES), "name": "digits"}
    )


@pytest.fixture(scope="module")
def residual_qat(residual: Trained, train_split: ArraySplit) -> QatNetwork:
    return rounded(residual, train_split)


@pytest.fixture(scope="module")
def residual_file(residual_qat: QatNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qat") / "int8_qat.onnx"
    export(residual_qat, path)
    return path


def test_every_layer_of_the_file_runs_as_integers(residual_qat: QatNetwork, tmp_path: Path) -> None:
    found = export(residual_qat, tmp_path / "form.onnx")
    assert (found.num_layers, found.num_integer) == (10, 10)
    assert (found.operators["QLinearConv"], found.operators["QLinearAdd"]) == (9, 3)
    assert not {"Conv", "Relu", "BatchNormalization"} & set(found.operators)


def test_the_file_answers_as_the_network_that_was_trained(
    residual_qat: QatNetwork, residual_file: Path, residual: Trained, validation_images: np.ndarray
) -> None:
    trained = TorchPredictor(residual_qat, CPU)(validation_images)
    given = load_predictor(residual_file)(validation_images)
    # Equal but for values that lie between two levels to within float32's rounding: one level, now and then.
    assert np.abs(given - trained).max() < 0.02 * np.abs(trained).max()
    assert agreement(given, trained) > 0.99
    assert agreement(given, load_predictor(residual.path)(validation_images)) > 0.95
    assert np.abs(trained - TorchPredictor(residual.network, CPU)(validation_images)).max() > 0.01, "it does round"


def test_the_file_is_small_and_says_what_it_is(residual_file: Path, residual: Trained) -> None:
    assert residual_file.stat().st_size < 0.4 * residual.path.stat().st_size
    metadata = load_predictor(residual_file).metadata
    assert metadata["form"] == "int8_qat"
    assert metadata["name"] == "digits"
    assert metadata["quantization"] == {
        "settings": {"reduce_range": False, "ranges": "learned"},
        "num_calibration_images": 64,
    }


def test_the_ordinary_loop_trains_it(
    cnn: Trained, train_split: ArraySplit, validation_split: ArraySplit, tmp_path: Path
) -> None:
    network = rounded(cnn, train_split)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    settings = TrainSettings(
        epochs=2, optimizer=SGD(learning_rate=0.01), precision="float32", threads=1, device="cpu", ema_decay=0.9
    )
    few = ArraySplit(train_split.images(np.arange(320, dtype=np.int64)).numpy(), train_split.labels[:320])
    views = ViewSettings(augmentation=NoAugmentation(), views_per_image=1)
    data = TrainingData(few, validation_split, views)
    state = new_training_state(
        network, KD(), data, settings=settings, teacher=OnlineTeacher(copy.deepcopy(cnn.network))
    )
    reports = [each for each in train_epochs(state, data, settings=settings, seed=0) if isinstance(each, EpochReport)]
    assert reports[-1].validation_accuracy_top1 > 0.9
    after = state.evaluated.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name].cpu())}
    assert {
        "graph.layer_0.weight",
        "graph.layer_0.norm.mean",
        "graph.layer_3.bias",
        "graph.quantizer_1.step",
    } <= changed
    assert not any(name.endswith("zero_point") for name in changed), "an average of whole numbers stays whole"
    assert isinstance(state.evaluated, QatNetwork)
    assert export(state.evaluated, tmp_path / "form.onnx").num_integer == 4


def test_batch_normalisation_is_alive_while_training_and_folded_outside(cnn: Trained, train_split: ArraySplit) -> None:
    network = rounded(cnn, train_split, ranges="observed")
    images = torch.rand(8, 3, *SIZE)
    outside = network.eval()(images)
    assert torch.equal(outside, network.eval()(images))
    norm = next(module for module in network.modules() if isinstance(module, BatchNorm))
    before = norm.mean.clone()
    inside = network.train()(images)
    assert not torch.allclose(inside, outside, atol=1e-3), "normalised by the batch, not by what was learned"
    assert not torch.equal(norm.mean, before)
    with torch.no_grad():
        norm.scale[0] = 0.0
    assert torch.isfinite(network.train()(images)).all(), "a channel that was switched off"
    assert torch.isfinite(network.eval()(images)).all()


def test_observed_ranges_do_not_train(cnn: Trained, train_split: ArraySplit) -> None:
    learned, observed = (rounded(cnn, train_split, ranges=ranges) for ranges in ("learned", "observed"))
    steps = [name for name, parameter in learned.named_parameters() if parameter.requires_grad and "step" in name]
    assert len(steps) == 5
    assert not any(parameter.requires_grad for name, parameter in observed.named_parameters() if "step" in name)


def test_reduced_weights_never_overflow(cnn: Trained, train_split: ArraySplit, tmp_path: Path) -> None:
    network = rounded(cnn, train_split, reduce_range=True)
    layers = [module for module in network.modules() if isinstance(module, QuantizedLayer)]
    assert {int(layer.levels().integers.abs().max()) for layer in layers} == {64}
    export(network, tmp_path / "form.onnx")
    assert write_without_vnni(tmp_path / "form.onnx", tmp_path / "simulated.onnx").num_layers_at_risk == 0


def test_a_saved_state_fits_a_network_made_again(cnn: Trained, train_split: ArraySplit) -> None:
    first = rounded(cnn, train_split)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.mul_(1.1)
    second = rounded(cnn, train_split)
    second.load_state_dict(first.state_dict())
    images = torch.rand(4, 3, *SIZE)
    assert torch.equal(first(images), second(images))


def test_the_network_is_not_changed(cnn: Trained, train_split: ArraySplit) -> None:
    before = {name: value.clone() for name, value in cnn.network.state_dict().items()}
    mode = cnn.network.training
    rounded(cnn, train_split)
    assert all(torch.equal(value, before[name]) for name, value in cnn.network.state_dict().items())
    assert cnn.network.training is mode


class Varied(nn.Module):
    """A normalisation before its convolution, a ReLU6, branches that are joined, and values that are only moved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.left = nn.Conv2d(8, 4, 1)
        self.right = nn.Conv2d(8, 4, 3, padding=1, bias=False)
        self.mixed = nn.Conv2d(8, 8, 3, groups=2)
        self.head = nn.Linear(8, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = F.relu(self.norm(F.max_pool2d(self.stem(images) + 0, 2) + self.stem(images)[:, :, ::2, ::2]))
        joined = torch.cat([F.relu6(self.left(maps)), self.right(maps)], dim=1)
        shuffled = joined.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
        return self.head(F.relu(self.mixed(shuffled)).mean((2, 3)))


def test_other_shapes_of_networks_round_and_run_as_integers(validation_images: np.ndarray, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Varied().eval()
    network.norm.running_mean.uniform_(-0.5, 0.5)
    network.norm.running_var.uniform_(0.5, 2.0)
    images = validation_images[:64]
    qat = quantization_aware(network, image_size=SIZE, calibration=[images])
    found = export(qat, tmp_path / "form.onnx")
    assert found.float_layers == ()
    assert {"QLinearConcat", "QLinearAdd"} <= set(found.operators)
    expected = TorchPredictor(network, CPU)(images)
    np.testing.assert_allclose(
        load_predictor(tmp_path / "form.onnx")(images), expected, atol=0.1 * np.abs(expected).max()
    )
    # Behind a sum there is no convolution that could take it in.
    assert [node.op_type for node in onnx.load(tmp_path / "form.onnx").graph.node].count("BatchNormalization") == 1


@pytest.mark.parametrize(
    ("network", "found"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(144, 10)), "aten.silu.default"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), "no convolution"),
    ],
    ids=["smooth activation", "no convolution"],
)
def test_other_kinds_of_networks_are_refused(network: nn.Module, found: str, validation_images: np.ndarray) -> None:
    with pytest.raises(ModelError, match=rf"knows convolutional networks of ReLU; this one has {found}: use post"):
        quantization_aware(network, image_size=SIZE, calibration=[validation_images[:4]])


def test_a_network_that_cannot_be_traced_is_an_error(validation_images: np.ndarray) -> None:
    class Branching(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images if images.sum() > 0 else -images

    with pytest.raises(ModelError, match=r"cannot be traced for quantisation-aware training: .*; use post-training"):
        quantization_aware(Branching(), image_size=SIZE, calibration=[validation_images[:4]])


def test_no_images_and_unknown_settings_are_errors(cnn: Trained) -> None:
    with pytest.raises(DataError, match="no calibration images"):
        quantization_aware(cnn.network, image_size=SIZE, calibration=[])
    with pytest.raises(ValidationError):
        QatSettings.model_validate({"ranges": "guessed"})


def observed(low: float, high: float) -> ActivationQuantizer:
    quantizer = ActivationQuantizer(is_learned=True)
    quantizer(torch.tensor([low, high]))
    quantizer.finish_observing_()
    return quantizer


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.55), (0.0, 2.55), (1.0, 2.55), (-2.55, -1.0)])
def test_activations_have_256_levels_and_zero_is_one(low: float, high: float) -> None:
    quantizer = observed(low, high)
    values = torch.linspace(-5, 5, 100_001)
    levels = quantizer(values).detach()
    assert len(levels.unique()) == 256
    assert quantizer(torch.zeros(1)).item() == 0.0
    inside = (values >= min(low, 0.0)) & (values <= max(high, 0.0))
    # Half a step, and half a step more where the range was moved to put zero on a level.
    assert (levels - values)[inside].abs().max() <= float(quantizer.step.detach()) * 1.001


def test_gradients_pass_rounding_and_stop_at_the_ends() -> None:
    quantizer = observed(0.0, 2.55)
    values = torch.tensor([-1.0, 0.503, 2.0, 9.0], requires_grad=True)
    quantizer(values).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 1.0, 1.0, 0.0]
    # LSQ: the clipped value pulls the step up by the number of levels, the others by their rounding error.
    factor = 1 / np.sqrt(4 * 255)
    expected = factor * (0.0 + (50 - 50.3) + (200 - 200.0) + 255)
    assert quantizer.step.grad is not None
    assert quantizer.step.grad.item() == pytest.approx(expected, rel=1e-3)


def test_nothing_but_zeros_has_a_step() -> None:
    assert observed(0.0, 0.0).step.item() == 1.0
