"""Pairs of 8-bit products whose sum does not fit into 16 bits, and what a processor without VNNI loses by them.

Such x86 processors multiply unsigned activations with signed weights by an instruction (VPMADDUBSW) that adds two
neighbouring products into 16 bits and stops at -32768 and 32767. Neighbours are consecutive inputs of a matrix
product; for a convolution, consecutive values of a patch in the order row, column, channel. Activations are taken as
they are stored, before their zero point is subtracted, signed ones 128 higher. Depthwise convolutions have another
kernel, which does not overflow. All of it agrees bit for bit with ONNX Runtime 1.31 on emulated processors: see
docs/quantization.md.
"""

from __future__ import annotations

from typing import NamedTuple, final

import numpy as np
from jaxtyping import Float, Int
from onnx import NodeProto, TensorProto, helper, numpy_helper

LOWEST, HIGHEST = -(2**15), 2**15 - 1
LARGEST_ACTIVATION = 255


class Pairs(NamedTuple):
    """Pairs of products of one layer that can overflow."""

    output: Int[np.ndarray, " P"]
    """Output channel that each belongs to."""
    first: Int[np.ndarray, " P"]
    """Place of the first of its two inputs; the other is the next."""
    weights: Int[np.ndarray, "P 2"]


def overflowing_pairs(weight: Int[np.ndarray, "O K"]) -> Pairs:
    """The pairs that overflow for some activation; K counts inputs in the order of the kernel."""
    padded = np.pad(weight.astype(np.int64), ((0, 0), (0, weight.shape[1] % 2)))
    pairs = padded.reshape(len(weight), -1, 2)
    largest = LARGEST_ACTIVATION * np.maximum(pairs, 0).sum(axis=2)
    smallest = LARGEST_ACTIVATION * np.minimum(pairs, 0).sum(axis=2)
    output, place = np.nonzero((largest > HIGHEST) | (smallest < LOWEST))
    return Pairs(output, 2 * place, pairs[output, place])


@final
class GraphPart:
    """Nodes and constants to be added to a graph, with names behind a prefix."""

    def __init__(self, prefix: str) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._prefix = prefix

    def constant(self, value: np.ndarray) -> str:
        """The name of a new constant."""
        name = f"{self._prefix}.constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def number(self, value: float) -> str:
        """The name of a new float constant."""
        return self.constant(np.array(value, dtype=np.float32))

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: int) -> str:
        """The name of a new node's output."""
        name = output or f"{self._prefix}.{operator}_{len(self.nodes)}"
        node = helper.make_node(operator, inputs, [name], f"{self._prefix}.node_{len(self.nodes)}")
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return name

    def lost(self, sums: str) -> str:
        """What 16 bits lose of sums of pairs."""
        above = self.add("Relu", self.add("Sub", sums, self.number(HIGHEST)))
        below = self.add("Relu", self.add("Sub", self.number(LOWEST), sums))
        return self.add("Sub", above, below)


def spread(pairs: Pairs, scale: Float[np.ndarray, " O"]) -> Float[np.ndarray, "P O"]:
    """The matrix that adds what each pair loses to its output channel, times the channel's scale."""
    matrix = np.zeros((len(pairs.output), len(scale)), dtype=np.float32)
    matrix[np.arange(len(pairs.output)), pairs.output] = scale[pairs.output]
    return matrix


def lost_by_product(part: GraphPart, stored: str, pairs: Pairs, scale: Float[np.ndarray, " O"]) -> str:
    """What a matrix product loses, in the units of its result; `stored` are its inputs as they are stored, as float."""
    terms = [
        part.add(
            "Mul",
            part.add("Gather", stored, part.constant(pairs.first + place), axis=-1),
            part.constant(pairs.weights[:, place].astype(np.float32)),
        )
        for place in (0, 1)
    ]
    return part.add("MatMul", part.lost(part.add("Add", *terms)), part.constant(spread(pairs, scale)))


class Window(NamedTuple):
    """How a convolution moves over its padded input."""

    group: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    """Top, left, bottom, right."""
    output_size: tuple[int, int]


def lost_by_convolution(
    part: GraphPart, stored: str, pairs: Pairs, scale: Float[np.ndarray, " O"], *, window: Window, num_inputs: int
) -> str:
    """What a convolution loses, in the units of its result; `stored` is its padded input as it is stored, as float.

    `num_inputs` are the channels that one output channel sees.
    """
    outputs_per_group = len(scale) // window.group
    ends = np.stack([pairs.first, pairs.first + 1], axis=1)
    positions, channels = np.divmod(ends, num_inputs)
    channels += (pairs.output // outputs_per_group * num_inputs)[:, None]
    sums: list[str] = []
    order: list[np.ndarray] = []
    for both in np.unique(positions, axis=0):
        (chosen,) = np.nonzero((positions == both).all(axis=1))
        terms = [
            part.add(
                "Mul",
                part.add(
                    "Gather", _at(part, stored, int(both[end]), window), part.constant(channels[chosen, end]), axis=1
                ),
                part.constant(pairs.weights[chosen, end].astype(np.float32)[:, None, None]),
            )
            for end in (0, 1)
        ]
        sums.append(part.add("Add", *terms))
        order.append(chosen)
    joined = part.add("Concat", *sums, axis=1)
    matrix = spread(pairs, scale)[np.concatenate(order)]
    return part.add("Conv", part.lost(joined), part.constant(np.ascontiguousarray(matrix.T)[:, :, None, None]))


def _at(part: GraphPart, stored: str, position: int, window: Window) -> str:
    """What one place of the kernel sees, for every pixel of the result."""
    starts = np.array(divmod(position, window.kernel[1])) * window.dilations
    stops = starts + (np.array(window.output_size) - 1) * window.strides + 1
    arguments = (starts, stops, np.array([2, 3]), np.array(window.strides))
    return part.add("Slice", stored, *(part.constant(value.astype(np.int64)) for value in arguments))
