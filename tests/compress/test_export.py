"""Exported for real, run for real: the file computes what the network computes, and holds nothing else."""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from pydantic import JsonValue, ValidationError
from torch import nn
from torch.nn import functional as F

from compress.errors import ArtifactError, ModelError
from compress.export import ExportSettings, export_onnx
from compress.export.graph import MIN_ONNXRUNTIME, remove_dead_, unfolded_normalisations
from compress.export.provenance import TOOLS, metric_units
from compress.models import Cnn, Statistics, build_network
from compress.parity import assert_parity
from compress.runtime import load_predictor
from compress.torch_predictor import TorchPredictor
from tests.compress.onnx_files import colour_model, random_images

CPU = torch.device("cpu")
SIZE = (16, 12)
CLASSES = ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs")
METADATA: dict[str, JsonValue] = {
    "classes": [*CLASSES],
    "preprocessing": {"resize": None, "color_order": "RGB"},
    "metrics": {"accuracy_top1": 0.5},
}


class ChannelNorm(nn.Module):
    """Layer normalisation over channels, as ConvNeXt has it; leaves its maps in channels-last memory."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(num_channels)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.norm(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNet(nn.Sequential):
    """Convolution, batch and layer normalisation, pooling to one pixel, dropout."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            ChannelNorm(8),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(8, 7),
        )


class SqueezeExciteNet(nn.Module):
    """A residual block with squeeze-excite and hard activations, as mobile networks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Linear(8, 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = F.hardswish(self.norm(self.stem(images)))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(maps, 1)))))
        return self.head((maps + maps * gate).mean((2, 3)))


def with_random_statistics(network: nn.Module) -> nn.Module:
    """Weights, biases and running statistics that are all different from their initial values."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.empty_like(tensor).uniform_(-1, 1, generator=generator))
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.5)
    return network


class Exported(NamedTuple):
    network: nn.Module
    path: Path

    @property
    def model(self) -> onnx.ModelProto:
        return onnx.load(self.path)

    @property
    def operators(self) -> set[str]:
        return {node.op_type for node in self.model.graph.node}


def export(network: nn.Module, path: Path, **settings: object) -> Exported:
    export_onnx(network, path, image_size=SIZE, settings=ExportSettings.model_validate(settings), metadata=METADATA)
    return Exported(network, path)


@pytest.fixture(scope="module")
def conv_net(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(with_random_statistics(ConvNet()).train(), tmp_path_factory.mktemp("conv") / "net.onnx")


@pytest.fixture(scope="module")
def squeeze_excite_net(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(with_random_statistics(SqueezeExciteNet()), tmp_path_factory.mktemp("se") / "net.onnx")


@pytest.fixture(params=["conv_net", "squeeze_excite_net"])
def exported(request: pytest.FixtureRequest) -> Exported:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 32])
def test_file_computes_what_the_network_computes_at_any_batch_size(exported: Exported, batch_size: int) -> None:
    images = random_images(batch_size, SIZE)
    expected = TorchPredictor(exported.network, CPU)(images)
    given = load_predictor(exported.path)(images)
    # float32 sums in another order: 2e-6 of the largest logit was the largest of twelve families of networks.
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_parity_holds_far_within_the_default_tolerance(exported: Exported) -> None:
    tolerance = ExportSettings().tolerance
    parity = assert_parity(
        TorchPredictor(exported.network, CPU),
        load_predictor(exported.path),
        random_images(40, SIZE),
        tolerance=tolerance,
    )
    assert parity.relative_error < tolerance / 10
    assert parity.agreement == 1.0


def test_another_network_has_no_parity(exported: Exported) -> None:
    """What holds the two tests above to their claim: the file has this network's weights and no others."""
    torch.manual_seed(1)
    other = copy.deepcopy(exported.network)
    with torch.no_grad():
        next(other.parameters())[0].add_(0.01)
    given = load_predictor(exported.path)(random_images(4, SIZE))
    expected = TorchPredictor(other, CPU)(random_images(4, SIZE))
    assert np.abs(given - expected).max() > 1e-4 * np.abs(expected).max()


def test_file_knows_its_classes_image_size_and_metadata(conv_net: Exported) -> None:
    predictor = load_predictor(conv_net.path)
    assert predictor.classes == CLASSES
    assert predictor.image_size == SIZE
    assert METADATA.items() <= predictor.metadata.items()


def test_file_says_what_made_it_and_what_it_needs(conv_net: Exported, tmp_path: Path) -> None:
    metadata = load_predictor(conv_net.path).metadata
    assert set(metadata) == {*METADATA, "tools", "requirements"}
    assert metadata["requirements"] == {"opset": 20, "ir_version": 9, "min_onnxruntime": MIN_ONNXRUNTIME}
    assert metadata["tools"] == {name: version(name).partition("+")[0] for name in TOOLS}
    licensed = export(copy.deepcopy(conv_net.network), tmp_path / "licensed.onnx", license="CC-BY-4.0")
    assert load_predictor(licensed.path).metadata["license"] == "CC-BY-4.0"


def test_declared_minimum_is_the_one_the_project_asks_for() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    (runtime,) = [entry for entry in project["dependencies"] if entry.startswith("onnxruntime")]
    assert runtime.startswith(f"onnxruntime>={MIN_ONNXRUNTIME},")


def test_every_metric_has_a_unit_and_an_unknown_one_is_an_error() -> None:
    assert metric_units(["accuracy_top1_validation", "loss_validation"]) == {
        "accuracy_top1_validation": "share of images, 0 to 1",
        "loss_validation": "nats per image",
    }
    with pytest.raises(ValueError, match="no unit is known for the metric 'beauty'"):
        metric_units(["beauty"])


@pytest.mark.parametrize(
    ("form", "tolerance"),
    [
        ("float32", 1e-4),
        ("float16", 0.02),
        ("weight_only_bfloat16", 0.02),
        ("weight_only", 0.25),
        ("int8_static_u8u8", 0.25),
        ("weight_only_int4", 0.5),
    ],
)
def test_every_precision_has_a_tolerance(form: str, tolerance: float) -> None:
    assert ExportSettings().tolerance_of(form) == tolerance


def test_file_is_one_file_in_standard_operators_of_one_version(exported: Exported) -> None:
    model = exported.model
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert model.ir_version == 9
    assert not model.functions
    assert [entry.name for entry in exported.path.parent.iterdir()] == ["net.onnx"]
    onnx.checker.check_model(model, full_check=True)


def test_nothing_of_the_machine_is_in_the_file(exported: Exported) -> None:
    content = exported.path.read_bytes()
    leaks = [
        str(Path.cwd()),
        str(Path.home()),
        tempfile.gettempdir(),
        sys.prefix,
        "site-packages",
        ".py",
        "stack_trace",
    ]
    assert [leak for leak in leaks if leak.encode() in content] == []
    assert {entry.key for entry in exported.model.metadata_props} == {*METADATA, "tools", "requirements"}


def test_nothing_in_the_file_is_dead(exported: Exported) -> None:
    graph = exported.model.graph
    taken = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= taken
    assert {name for node in graph.node for name in node.output} <= taken | {"logits"}
    assert unfolded_normalisations(graph) == []


def test_dead_nodes_and_weights_are_removed_and_live_ones_kept() -> None:
    graph = colour_model().graph
    before = [node.op_type for node in graph.node]
    graph.node.extend(
        [onnx.helper.make_node("Relu", ["means"], ["unused"]), onnx.helper.make_node("Abs", ["unused"], ["also"])]
    )
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(3, dtype=np.float32), "forgotten"))
    remove_dead_(graph)
    assert [node.op_type for node in graph.node] == before
    assert [tensor.name for tensor in graph.initializer] == ["axes", "weight"]


def test_what_only_an_inner_graph_takes_is_not_dead() -> None:
    graph = colour_model().graph
    inner = onnx.helper.make_graph([onnx.helper.make_node("Abs", ["weight"], ["branch"])], "branch", [], [])
    graph.node[-1].attribute.append(onnx.helper.make_attribute("then_branch", inner))
    graph.node[-1].input[1] = "means"
    remove_dead_(graph)
    assert [tensor.name for tensor in graph.initializer] == ["axes", "weight"]


def test_a_normalisation_that_was_not_folded_is_noticed() -> None:
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["maps"], "conv"),
        onnx.helper.make_node("BatchNormalization", ["maps", "a", "b", "c", "d"], ["folded"], "behind_conv"),
        onnx.helper.make_node("Relu", ["folded"], ["active"], "relu"),
        onnx.helper.make_node("BatchNormalization", ["active", "a", "b", "c", "d"], ["y"], "behind_relu"),
    ]
    assert unfolded_normalisations(onnx.helper.make_graph(nodes, "g", [], [])) == ["behind_conv"]


def test_batch_normalisation_and_strided_views_are_gone(conv_net: Exported) -> None:
    assert "Conv" in conv_net.operators
    assert conv_net.operators.isdisjoint({"BatchNormalization", "Shape", "Gather", "Dropout", "GlobalAveragePool"})


def test_hard_sigmoid_is_said_in_plain_operators(squeeze_excite_net: Exported) -> None:
    assert "HardSigmoid" not in squeeze_excite_net.operators
    assert {"Mul", "Add", "Clip"} <= squeeze_excite_net.operators


def test_types_of_weights_are_said_once(exported: Exported) -> None:
    graph = exported.model.graph
    assert {value.name for value in graph.value_info}.isdisjoint({tensor.name for tensor in graph.initializer})


def test_two_exports_are_equal_byte_for_byte(conv_net: Exported, tmp_path: Path) -> None:
    again = export(copy.deepcopy(conv_net.network), tmp_path / "again.onnx")
    assert again.path.read_bytes() == conv_net.path.read_bytes()


def test_training_mode_memory_layout_and_precision_leave_no_trace(squeeze_excite_net: Exported, tmp_path: Path) -> None:
    other = copy.deepcopy(squeeze_excite_net.network).eval().double().to(memory_format=torch.channels_last)
    assert export(other, tmp_path / "other.onnx").path.read_bytes() == squeeze_excite_net.path.read_bytes()


def test_the_network_is_not_changed(tmp_path: Path) -> None:
    network = with_random_statistics(ConvNet()).train()
    modules, weights = list(network.modules()), {name: value.clone() for name, value in network.state_dict().items()}
    export(network, tmp_path / "net.onnx")
    assert list(network.modules()) == modules
    assert all(module.training for module in modules)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_our_own_networks_export_under_the_run_time_type_checker(tmp_path: Path) -> None:
    statistics = Statistics(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    network = build_network(Cnn(channels=(4, 8)), num_classes=7, image_size=SIZE, statistics=statistics)
    exported = export(with_random_statistics(network), tmp_path / "net.onnx")
    images = random_images(9, SIZE)
    assert_parity(TorchPredictor(network, CPU), load_predictor(exported.path), images, tolerance=1e-5)


def test_parallel_branches_of_timm_are_merged_in_a_copy(tmp_path: Path) -> None:
    from timm.models.byobnet import RepVggBlock

    network = with_random_statistics(
        nn.Sequential(RepVggBlock(3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 7))
    )
    exported = export(network, tmp_path / "net.onnx")
    kinds = [node.op_type for node in exported.model.graph.node]
    assert kinds.count("Conv") == 1, "3x3, 1x1 and identity as one convolution"
    assert "BatchNormalization" not in kinds
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == 3
    assert_parity(TorchPredictor(network, CPU), load_predictor(exported.path), random_images(9, SIZE), tolerance=1e-5)


def test_old_opset_comes_with_the_old_file_format(tmp_path: Path) -> None:
    model = export(ConvNet(), tmp_path / "net.onnx", opset=18).model
    assert model.opset_import[0].version == 18
    assert model.ir_version == 8


@pytest.mark.parametrize(
    "settings", [{"opset": 17}, {"opset": 23}, {"tolerance": 0.0}, {"weights": "worst"}, {"opste": 20}]
)
def test_settings_that_no_file_can_have_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ExportSettings.model_validate(settings)


def test_quantiser_takes_the_file(squeeze_excite_net: Exported, tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"image": random_images(8, SIZE)}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    path = tmp_path / "int8.onnx"
    quantize_static(squeeze_excite_net.path, path, Reader(), activation_type=QuantType.QUInt8, per_channel=True)
    quantised = load_predictor(path)
    assert quantised.classes == CLASSES
    assert quantised(random_images(2, SIZE)).shape == (2, 7)


def test_failed_export_says_why_in_one_line_and_leaves_the_earlier_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class DependsOnItsData(ConvNet):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) if images.sum() > 0 else super().forward(-images)

    path = tmp_path / "net.onnx"
    path.write_bytes(b"the earlier file")
    with pytest.raises(ModelError, match=r"cannot be exported to ONNX: .*data") as caught:
        export(DependsOnItsData(), path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert path.read_bytes() == b"the earlier file"
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.onnx"]


def test_network_for_one_batch_size_is_refused(tmp_path: Path) -> None:
    class OnlyTwo(ConvNet):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert len(images) == 2
            return super().forward(images)

    with pytest.raises(ModelError, match="answers batches of one size only"):
        export(OnlyTwo(), tmp_path / "net.onnx")


@pytest.mark.parametrize(
    ("classes", "match"),
    [
        (None, "must be the list of class names, got None"),
        ("seven", "must be the list of class names"),
        ([1, 2, 3, 4, 5, 6, 7], "must be the list of class names"),
        (["a", "b"], "2 names, the network 7 logits"),
    ],
)
def test_class_names_that_do_not_fit_are_a_wrong_call(tmp_path: Path, classes: JsonValue, match: str) -> None:
    metadata = {**METADATA, "classes": classes}
    with pytest.raises(ValueError, match=match):
        export_onnx(ConvNet(), tmp_path / "net.onnx", image_size=SIZE, settings=ExportSettings(), metadata=metadata)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written_is_an_error(conv_net: Exported, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"cannot make the folder .*file: .*; choose another"):
        export(conv_net.network, tmp_path / "file" / "net.onnx")


def test_failed_write_leaves_nothing_behind(conv_net: Exported, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").mkdir()
    with pytest.raises(ArtifactError, match=r"cannot write .*net\.onnx: .*; choose a writable folder"):
        export(conv_net.network, tmp_path / "net.onnx")
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.onnx"]


def test_metadata_is_json_in_utf8(conv_net: Exported) -> None:
    texts = {entry.key: entry.value for entry in conv_net.model.metadata_props}
    assert "fünf" in texts["classes"], "readable for programs that only show the text"
    assert METADATA.items() <= {key: json.loads(text) for key, text in texts.items()}.items()
