"""8-bit matrix products whose activation range is taken anew for every batch: the form for transformers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal, final

import onnx

from compress.errors import ModelError
from compress.export.exported import ExportedModel
from compress.quantize.base import CalibrationImages, Converted, Quantizer
from compress.quantize.quiet import root_logger_untouched
from compress.quantize.source import check_excluded, layers


@final
class Int8Dynamic(Quantizer):
    """8-bit weights of matrix products; activations become integers as they come. Convolutions stay in float32.

    One scale serves all images of a batch, so an image's logits change with the images beside it. ONNX Runtime's
    dynamic convolution is several times slower than float32 and is not offered.
    """

    name: Literal["int8_dynamic"] = "int8_dynamic"
    per_channel: bool = True
    """A scale for every output feature of a weight, instead of one for all."""
    reduce_range: bool = False
    """Weights in 7 bits: exact on processors without VNNI, a little less accurate everywhere."""
    excluded_nodes: tuple[str, ...] = ()
    """Layers that stay in float32, by the names of their nodes."""

    def convert(self, source: ExportedModel, calibration: CalibrationImages) -> Converted:
        check_excluded(source, self.excluded_nodes)
        products = [layer.name for layer in layers(source.model.graph) if layer.node.op_type != "Conv"]
        if set(products) <= set(self.excluded_nodes):
            raise ModelError(f"{source.path} has no matrix product that int8_dynamic could quantise; use int8_static")
        return Converted(self._quantized(source), excluded_nodes=self.excluded_nodes)

    def _quantized(self, source: ExportedModel) -> onnx.ModelProto:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with tempfile.TemporaryDirectory() as folder, root_logger_untouched():
            path = Path(folder) / "dynamic.onnx"
            quantize_dynamic(
                source.copy(),
                path,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=self.per_channel,
                reduce_range=self.reduce_range,
                weight_type=QuantType.QInt8,
                # A Gemm becomes a MatMul of another name and an Add before the quantiser looks at names.
                nodes_to_exclude=[*self.excluded_nodes, *(f"{name}_MatMul" for name in self.excluded_nodes)],
            )
            return onnx.load(path)
