"""Ranges of activations, from streams of any length in bounded memory."""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compress.data.prepared import ArraySplit
from compress.errors import ModelError
from compress.quantize import calibration as calibration_module
from compress.quantize.calibration import MAX_CHUNK_IMAGES, NUM_BINS, Entropy, MinMax, Percentile, calibrate
from compress.quantize.thresholds import entropy_range, percentile_range
from tests.compress.quantize.conftest import Trained, calibration

SIZE = (4, 4)


def model(*, scale: float = 1.0) -> onnx.ModelProto:
    """The pixels themselves as one tensor, `pixels`, and their double as another."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "scale"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "pixels",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", *SIZE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", *SIZE, 3])],
        [helper.make_tensor("scale", TensorProto.FLOAT, [], [scale])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def images(num_images: int, *, seed: int = 0, high: int = 200) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, (num_images, *SIZE, 3), dtype=np.uint8)


def batches(pixels: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (pixels[start : start + size] for start in range(0, len(pixels), size))


def test_minmax_is_the_smallest_and_largest_value_of_all_images() -> None:
    pixels = images(50)
    found = calibrate(model(scale=-0.5), batches(pixels, 7), MinMax())
    assert found.num_images == 50
    assert found.ranges["pixels"] == (float(pixels.min()), float(pixels.max()))
    assert found.ranges["logits"] == (-0.5 * pixels.max(), -0.5 * float(pixels.min()))


@pytest.mark.parametrize("ranges", [MinMax(), Percentile(percentile=99.0), Entropy()], ids=lambda each: each.name)
def test_how_images_are_batched_changes_nothing(ranges: MinMax | Percentile | Entropy) -> None:
    pixels = images(40)
    found = [calibrate(model(), batches(pixels, size), ranges).ranges for size in (1, 7, 40)]
    assert found[0] == found[1] == found[2]


def test_every_tensor_of_a_network_gets_a_range(cnn: Trained, train_split: ArraySplit) -> None:
    found = calibrate(onnx.load(cnn.path), calibration(train_split), MinMax()).ranges
    for node in onnx.load(cnn.path).graph.node:
        if node.op_type in {"Conv", "Relu", "Gemm", "ReduceMean"}:
            low, high = found[node.output[0]]
            assert low < high
            assert node.op_type != "Relu" or low == 0.0


@pytest.mark.parametrize("ranges", [MinMax(), Percentile(), Entropy()], ids=lambda each: each.name)
def test_memory_does_not_grow_with_the_number_of_images(ranges: MinMax | Percentile | Entropy) -> None:
    def peak(num_images: int) -> int:
        tracemalloc.start()
        calibrate(model(), (images(16, seed=seed) for seed in range(num_images // 16)), ranges)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(16)  # what the first call imports
    few, many = peak(32), peak(640)
    # 38 further batches of 16 images have 18 kB of activations each in numpy's hands.
    assert many < few + 50_000


def test_images_and_activations_are_let_go_as_the_stream_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    batches_seen: list[weakref.ref[np.ndarray]] = []
    tensors_seen: list[weakref.ref[np.ndarray]] = []
    finite = calibration_module._finite

    def watched(name: str, values: np.ndarray) -> np.ndarray:
        tensors_seen.append(weakref.ref(values))
        assert sum(each() is not None for each in tensors_seen) <= 2, "two tensors a chunk"
        return finite(name, values)

    def stream() -> Iterator[np.ndarray]:
        for seed in range(20):
            batch = images(4, seed=seed)
            batches_seen.append(weakref.ref(batch))
            assert sum(each() is not None for each in batches_seen) <= 2
            yield batch

    monkeypatch.setattr(calibration_module, "_finite", watched)
    assert calibrate(model(), stream(), Percentile()).num_images == 80
    assert len(tensors_seen) == 2 * 20


def test_a_large_batch_is_run_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    finite = calibration_module._finite
    monkeypatch.setattr(
        calibration_module, "_finite", lambda name, values: sizes.append(len(values)) or finite(name, values)
    )
    calibrate(model(), [images(100)], MinMax())
    assert max(sizes) == MAX_CHUNK_IMAGES
    sizes.clear()
    monkeypatch.setattr(calibration_module, "CHUNK_BYTES", 3 * 2 * 4 * 48)  # three images of two tensors
    calibrate(model(), [images(7)], MinMax())
    assert sizes == [3, 3, 3, 3, 1, 1]


def test_percentile_cuts_a_share_off_the_ends() -> None:
    pixels = images(100, high=101)
    pixels[0, 0, 0, 0] = 255
    low, high = calibrate(model(), [pixels], Percentile(percentile=99.9)).ranges["pixels"]
    assert low == 0.0
    assert 100 <= high <= 100 + 2 * 256 / NUM_BINS
    assert calibrate(model(), [pixels], Percentile(percentile=100.0)).ranges["pixels"] == (0.0, 255.0)


def test_a_histogram_that_grows_keeps_its_counts() -> None:
    """The first values are 200 times smaller than the last ones: the bins double their width eight times."""
    small, large = images(10, high=2), images(10, seed=1)
    growing = calibrate(model(), [small, large], Percentile(percentile=99.0)).ranges["pixels"]
    assert growing == calibrate(model(), [large, small], Percentile(percentile=99.0)).ranges["pixels"]
    assert 190 < growing[1] < 200


def test_a_tensor_of_zeros_has_no_range() -> None:
    black = np.zeros((3, *SIZE, 3), dtype=np.uint8)
    for ranges in (MinMax(), Percentile(), Entropy()):
        assert calibrate(model(), [black], ranges).ranges["pixels"] == (0.0, 0.0)


def test_an_activation_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(ModelError, match="logits takes NaN or infinity on calibration images"):
        calibrate(model(scale=3e38), [images(1)], MinMax())


def histogram(values: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    counts, edges = np.histogram(values, NUM_BINS, range=(-limit, limit))
    return counts.astype(np.int64), edges


def test_entropy_cuts_a_far_outlier_and_leaves_even_values_alone() -> None:
    random = np.random.default_rng(0)
    low, high = entropy_range(*histogram(np.append(random.normal(size=100_000), 40.0), 40.0))
    assert 3.0 < high < 10.0
    assert low == -high
    even = random.uniform(0, 10, 100_000)
    assert entropy_range(*histogram(even, 10.0)) == pytest.approx((-10.0, 10.0))


def test_entropy_is_not_misled_by_the_zeros_of_relu() -> None:
    random = np.random.default_rng(0)
    rectified = np.maximum(random.normal(size=100_000), 0.0)
    _, high = entropy_range(*histogram(rectified, float(rectified.max())))
    assert high > 2.5


def test_percentile_range_of_everything_is_the_used_bins() -> None:
    counts, edges = histogram(np.array([-1.0, 2.0]), 4.0)
    low, high = percentile_range(counts, edges, 100.0)
    width = 8.0 / NUM_BINS
    assert (low, high) == (pytest.approx(-1.0, abs=width), pytest.approx(2.0, abs=width))
