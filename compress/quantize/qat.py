"""Quantisation-aware training: a network that trains with the rounding its 8-bit file will have.

Any loss and the ordinary loop train it. It starts from a trained network and wants a short training at a low learning
rate. torch's own tools do not lead here: those of torch.ao do not export, those of torchao need a further dependency
and place rounding where ONNX Runtime cannot fuse all of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Literal, TypeVar, final

import torch
from pydantic import JsonValue
from torch import fx, nn

from compress.errors import DataError
from compress.quantize.qat_graph import RELU, QuantizedGraph, quantized_graph
from compress.quantize.qat_layers import ActivationQuantizer, OnnxActivation, OnnxLayer, QuantizedLayer
from compress.settings import Settings
from compress.tensors import as_float_images
from compress.types import FloatImages, ImageArray, Logits

CPU = torch.device("cpu")


class QatSettings(Settings):
    """How a network is rounded while it trains."""

    reduce_range: bool = False
    """Weights in 7 bits: exact on processors without VNNI, a little less accurate everywhere."""
    ranges: Literal["learned", "observed"] = "learned"
    """Whether the steps of activations go on learning or stay as observed before training."""


@final
class QatNetwork(nn.Module):
    """A network that rounds; made by `quantization_aware`. Its state dict fits one made of the same network."""

    def __init__(self, graph: QuantizedGraph, settings: QatSettings, *, num_calibration_images: int) -> None:
        super().__init__()
        self.settings = settings
        self.num_calibration_images = num_calibration_images
        self.graph = graph.module
        self._input_quantizers = graph.input_quantizers

    @property
    def facts(self) -> dict[str, JsonValue]:
        """How it rounds, for whoever meets it saved or exported."""
        return {
            "settings": self.settings.model_dump(mode="json"),
            "num_calibration_images": self.num_calibration_images,
        }

    def forward(self, images: FloatImages) -> Logits:
        """Pixels in [0, 1] to logits."""
        return self.graph(images)

    def deployable(self) -> nn.Module:
        """The network in ONNX operators on integers, for `export_onnx`; it computes nothing in torch."""
        module = copy.deepcopy(self.graph).cpu()
        quantizers = {
            name: _submodule(module, name, ActivationQuantizer) for name in _names(module, ActivationQuantizer)
        }
        for name in _names(module, QuantizedLayer):
            layer = _submodule(module, name, QuantizedLayer)
            module.set_submodule(name, OnnxLayer(layer, input_step=quantizers[self._input_quantizers[name]].step))
        # Levels that start at zero clip as ReLU does; without it nothing stands between a layer and its rounding.
        for node in list(module.graph.nodes):
            if str(node.target) == RELU and all(_clips_at_zero(user, quantizers) for user in node.users):
                node.replace_all_uses_with(node.args[0])
                module.graph.erase_node(node)
        module.recompile()
        for name, quantizer in quantizers.items():
            module.set_submodule(name, OnnxActivation(quantizer))
        return module


def quantization_aware(
    network: nn.Module,
    *,
    image_size: tuple[int, int],
    calibration: Iterable[ImageArray],
    settings: QatSettings | None = None,
) -> QatNetwork:
    """A copy of a trained network that rounds weights and activations, ready to be trained.

    The first steps of activations follow from the smallest and largest values on the calibration images.

    Raises:
        ModelError: the network is not a plain convolutional one.
        DataError: there are no calibration images.
    """
    settings = settings or QatSettings()
    graph = quantized_graph(
        network,
        image_size,
        largest_weight=64 if settings.reduce_range else 127,
        is_learned=settings.ranges == "learned",
    )
    num_images = 0
    graph.module.eval()
    with torch.no_grad():
        for batch in calibration:
            graph.module(as_float_images(torch.from_numpy(batch), CPU))
            num_images += len(batch)
    if num_images == 0:
        raise DataError("no calibration images: give at least one, better 128, of the train split")
    for name in _names(graph.module, ActivationQuantizer):
        _submodule(graph.module, name, ActivationQuantizer).finish_observing_()
    return QatNetwork(graph, settings, num_calibration_images=num_images)


M = TypeVar("M", bound=nn.Module)


def _names(module: nn.Module, kind: type[nn.Module]) -> list[str]:
    return [name for name, child in module.named_modules() if isinstance(child, kind)]


def _submodule(module: nn.Module, name: str, kind: type[M]) -> M:
    child = module.get_submodule(name)
    assert isinstance(child, kind)
    return child


def _clips_at_zero(node: fx.Node, quantizers: Mapping[str, ActivationQuantizer]) -> bool:
    quantizer = quantizers.get(str(node.target)) if node.op == "call_module" else None
    return quantizer is not None and int(quantizer.zero_point) == 0
