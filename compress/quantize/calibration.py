"""Which values activations take: a range for every tensor, observed image by image.

onnxruntime's own calibrators keep every activation of every image until the end (9.6 GB for ResNet-18 and 256 images)
and widen their histograms without limit. Here a chunk of images is run, its tensors are folded into sums of fixed
size, and forgotten; memory depends on the network and not on the number of images.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple, final

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, TensorProto
from pydantic import Field

from compress.errors import DataError, ModelError
from compress.quantize.base import CalibrationImages
from compress.quantize.thresholds import entropy_range, percentile_range
from compress.settings import Settings
from compress.types import ImageArray

CHUNK_BYTES = 2**28
"""Activations of the images that are run together; at least one image is."""
MAX_CHUNK_IMAGES = 16
NUM_BINS = 8192

FloatRange = tuple[float, float]


class MinMax(Settings):
    """The smallest and the largest value that occurred."""

    name: Literal["minmax"] = "minmax"


class Percentile(Settings):
    """What is left when a share of the values is cut off, half of it at each end."""

    name: Literal["percentile"] = "percentile"
    percentile: Annotated[float, Field(gt=50.0, le=100.0)] = 99.999
    """Share of values that are kept, in per cent. 99.9 did harm in every network that was measured."""


class Entropy(Settings):
    """The cut whose 128 levels lose the least information (Migacz, GTC 2017); ten times the time of the others."""

    name: Literal["entropy"] = "entropy"


Ranges = Annotated[MinMax | Percentile | Entropy, Field(discriminator="name")]


class Calibration(NamedTuple):
    """What was observed."""

    ranges: dict[str, FloatRange]
    """Lowest and highest value to represent, by tensor."""
    num_images: int


def calibrate(model: ModelProto, images: CalibrationImages, ranges: MinMax | Percentile | Entropy) -> Calibration:
    """Observe every float tensor of a model on images.

    Memory: the model, 256 MB of activations or those of a single image if they are more, and a histogram of 8192 bins
    for each tensor. Time: a forward pass and a pass over all activations per image.

    Raises:
        DataError: there are no images.
        ModelError: an activation is not finite.
    """
    session, names, chunk = _observing_session(model)
    observers: dict[str, _Observer] = {
        name: _Extremes() if isinstance(ranges, MinMax) else _Histogram() for name in names
    }
    num_images = 0
    for batch in _chunks(images, chunk):
        outputs = session.run(names, {session.get_inputs()[0].name: batch})
        for name, values in zip(names, outputs, strict=True):
            observers[name].add_(_finite(name, np.asarray(values)))
        num_images += len(batch)
    if num_images == 0:
        raise DataError("no calibration images: give at least one, better 128, of the train split")
    return Calibration({name: observer.range(ranges) for name, observer in observers.items()}, num_images)


def _observing_session(model: ModelProto) -> tuple[ort.InferenceSession, list[str], int]:
    """A session that gives every float tensor, their names, and the images it should be given at once."""
    observed = onnx.shape_inference.infer_shapes(model, data_prop=True)
    constants = {tensor.name for tensor in observed.graph.initializer}
    tensors = [
        value
        for value in (*observed.graph.value_info, *observed.graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.name not in constants
    ]
    del observed.graph.output[:]
    observed.graph.output.extend(tensors)
    bytes_per_image = 4 * sum(
        math.prod(max(dim.dim_value, 1) for dim in value.type.tensor_type.shape.dim) for value in tensors
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # Fused operators would have nothing left to observe.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    session = ort.InferenceSession(observed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    chunk = min(max(CHUNK_BYTES // bytes_per_image, 1), MAX_CHUNK_IMAGES)
    return session, [value.name for value in tensors], chunk


def _chunks(images: CalibrationImages, size: int) -> Iterator[ImageArray]:
    """Pieces of at most so many images, whatever the batches."""
    for batch in images:
        for start in range(0, len(batch), size):
            yield np.ascontiguousarray(batch[start : start + size])


def _finite(name: str, values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ModelError(f"{name} takes NaN or infinity on calibration images; train the network again")
    return values


class _Observer(ABC):
    @abstractmethod
    def add_(self, values: np.ndarray) -> None: ...

    @abstractmethod
    def range(self, ranges: MinMax | Percentile | Entropy) -> FloatRange: ...


@final
class _Extremes(_Observer):
    def __init__(self) -> None:
        self._low, self._high = math.inf, -math.inf

    def add_(self, values: np.ndarray) -> None:
        if values.size:
            self._low = min(self._low, float(values.min()))
            self._high = max(self._high, float(values.max()))

    def range(self, ranges: MinMax | Percentile | Entropy) -> FloatRange:
        return self._low, self._high


@final
class _Histogram(_Observer):
    """Counts over [-limit, limit]. A larger value doubles the limit and joins neighbouring bins: their number stays.

    The limit is a power of two, so that in the end the bins are the same in whatever order the values came.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(NUM_BINS, dtype=np.int64)
        self._limit = 0.0
        self._extremes = _Extremes()

    def add_(self, values: np.ndarray) -> None:
        self._extremes.add_(values)
        largest = float(np.abs(values).max(initial=0.0))
        if self._limit == 0.0 and largest > 0.0:
            # All that came before was zero, and zero is in the upper middle bin whatever the limit.
            self._limit = 2.0 ** math.ceil(math.log2(largest))
        while largest > self._limit:
            quarter = NUM_BINS // 4
            joined = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.pad(joined, quarter)
            self._limit *= 2
        limit = self._limit or 1.0
        self._counts += np.histogram(values, NUM_BINS, range=(-limit, limit))[0]

    def range(self, ranges: MinMax | Percentile | Entropy) -> FloatRange:
        extremes = self._extremes.range(ranges)
        if self._limit == 0.0:
            return extremes
        edges = np.linspace(-self._limit, self._limit, NUM_BINS + 1)
        if isinstance(ranges, Percentile):
            low, high = percentile_range(self._counts, edges, ranges.percentile)
        else:
            low, high = entropy_range(self._counts, edges)
        return max(low, extremes[0]), min(high, extremes[1])
