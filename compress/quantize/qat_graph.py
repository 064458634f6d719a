"""A convolutional network as a graph in which activations and weights are rounded where integers will be.

Where rounding goes is what ONNX Runtime needs to fuse a layer: on the inputs and the result of every convolution,
matrix product, sum and concatenation, behind the ReLU if one follows, and again, with the same levels, behind what
only moves values. Normalised pixels are rounded, logits are not.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from compress.errors import ModelError
from compress.quantize.qat_layers import (
    ActivationQuantizer,
    BatchNorm,
    QuantizedConv2d,
    QuantizedLayer,
    QuantizedLinear,
    Window,
)

CONV, LINEAR, BATCH_NORM = "aten.conv2d.default", "aten.linear.default", "aten.batch_norm.default"
RELU, ADD, CONCATENATE = "aten.relu.default", "aten.add.Tensor", "aten.cat.default"
SAME = {
    "aten.relu_.default": torch.ops.aten.relu.default,
    "aten.add_.Tensor": torch.ops.aten.add.Tensor,
}
"""In-place operators and what they say."""
SPLITS = frozenset({"aten.chunk.default", "aten.split.Tensor", "aten.split_with_sizes.default"})
MOVES = SPLITS | {
    "<built-in function getitem>", "aten.clone.default", "aten.contiguous.default", "aten.dropout.default",
    "aten.flatten.using_ints", "aten.max_pool2d.default", "aten.permute.default", "aten.reshape.default",
    "aten.slice.Tensor", "aten.squeeze.dim", "aten.transpose.int", "aten.unflatten.int", "aten.unsqueeze.default",
    "aten.view.default",
}  # fmt: skip
"""Operators whose results are values of their input."""
FLOATS = frozenset(
    {
        "aten.adaptive_avg_pool2d.default", "aten.avg_pool2d.default", "aten.div.Tensor", "aten.mean.dim",
        "aten.mul.Tensor", "aten.sub.Tensor", "aten.sym_size.int",
    }
)  # fmt: skip
"""Operators that stay in float: the normalisation of pixels, and means."""
RELU6 = frozenset({"aten.hardtanh.default", "aten.hardtanh_.default", "aten.relu6.default"})


class QuantizedGraph(NamedTuple):
    """The network, and which quantiser each layer takes its input from."""

    module: fx.GraphModule
    input_quantizers: dict[str, str]


def quantized_graph(
    network: nn.Module, image_size: tuple[int, int], *, largest_weight: int, is_learned: bool
) -> QuantizedGraph:
    """A copy of a trained network with every layer quantised, the batch normalisation behind it included.

    Raises:
        ModelError: the network has operators other than those of plain convolutional networks.
    """
    module = _captured(network, image_size)
    _normalise_(module)
    norms = _take_out_batch_norms_(module)
    _check(module.graph)
    _place_quantizers_(module, is_learned=is_learned)
    inputs = _quantize_layers_(module, norms, largest_weight=largest_weight)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    # A new module keeps only what the graph still uses.
    return QuantizedGraph(fx.GraphModule(module, module.graph), inputs)


def _captured(network: nn.Module, image_size: tuple[int, int]) -> fx.GraphModule:
    copied = copy.deepcopy(network).cpu().float().eval().to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    try:
        # Two images: the tracer takes a size of 1 for a constant in some layers.
        images = torch.zeros(2, 3, *image_size)
        program = torch.export.export(copied, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"the network cannot be traced for quantisation-aware training: {reason}; use post-training int8_static"
        ) from error
    exported = program.module()
    for node in list(exported.graph.nodes):
        if node.op == "call_module" and "guards" in str(node.target):
            exported.graph.erase_node(node)
    # The exporter's own module refuses train() and eval(); an ordinary one has both.
    return fx.GraphModule(exported, exported.graph)


def _normalise_(module: fx.GraphModule) -> None:
    """Say in-place operators and ReLU6 as what the later steps know."""
    for node in list(module.graph.nodes):
        if _name(node) in SAME:
            node.target = SAME[_name(node)]
        elif _name(node) in RELU6 and (_name(node) == "aten.relu6.default" or tuple(node.args[1:2]) in ((0,), (0.0,))):
            # The levels behind it end at 6 or below, so that rounding clips as ReLU6 does.
            node.target, node.args, node.kwargs = torch.ops.aten.relu.default, node.args[:1], {}
    # x.add(y, alpha) and unused nodes of the tracer
    module.graph.eliminate_dead_code()


def _take_out_batch_norms_(module: fx.GraphModule) -> dict[fx.Node, BatchNorm]:
    """Remove each batch normalisation behind a convolution: the layers will do it. Any other becomes a module."""
    graph = module.graph
    folded: dict[fx.Node, BatchNorm] = {}
    for index, node in enumerate([node for node in graph.nodes if _name(node) == BATCH_NORM]):
        norm = _batch_norm(module, node)
        before = _node(node.args[0])
        if _name(before) == CONV and len(before.users) == 1:
            folded[before] = norm
            node.replace_all_uses_with(before)
        else:
            module.add_submodule(f"norm_{index}", norm)
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.call_module(f"norm_{index}", (before,)))
        graph.erase_node(node)
    return folded


def _batch_norm(module: fx.GraphModule, node: fx.Node) -> BatchNorm:
    scale, shift, mean, variance = (None if each is None else _tensor(module, each) for each in node.args[1:5])
    assert mean is not None
    assert variance is not None
    return BatchNorm(
        torch.ones_like(mean) if scale is None else scale,
        torch.zeros_like(mean) if shift is None else shift,
        mean=mean,
        variance=variance,
        momentum=_number(node.args[6]),
        epsilon=_number(node.args[7]),
    )


def _check(graph: fx.Graph) -> None:
    known = {CONV, LINEAR, RELU, ADD, CONCATENATE} | MOVES | FLOATS
    names = {_name(node) for node in graph.nodes if node.op == "call_function"}
    if names - known or CONV not in names:
        found = ", ".join(sorted(names - known)) or "no convolution"
        raise ModelError(
            f"quantisation-aware training knows convolutional networks of ReLU; this one has {found}: "
            "use post-training int8_static or int8_dynamic"
        )


def _place_quantizers_(module: fx.GraphModule, *, is_learned: bool) -> None:
    graph = module.graph
    placed: dict[fx.Node, str] = {}

    def mark(node: fx.Node) -> None:
        if node in placed or node.op == "get_attr":
            return
        if _name(node) in MOVES:
            source = _node(node.args[0])
            mark(source)
            placed[node] = placed[source]
        else:
            placed[node] = f"quantizer_{len(set(placed.values()))}"

    for node in list(graph.nodes):
        if _name(node) in (CONV, LINEAR, ADD, CONCATENATE) and not _is_constant_sum(node):
            for given in _activations(node):
                mark(given)
            if not _is_answer(node):
                mark(_behind_relu(node))
    for name in dict.fromkeys(placed.values()):
        module.add_submodule(name, ActivationQuantizer(is_learned=is_learned))
    for node, name in placed.items():
        if _name(node) not in SPLITS:
            with graph.inserting_after(node):
                rounded = graph.call_module(name, (node,))
            node.replace_all_uses_with(rounded, delete_user_cb=lambda user, rounded=rounded: user is not rounded)


def _quantize_layers_(
    module: fx.GraphModule, norms: Mapping[fx.Node, BatchNorm], *, largest_weight: int
) -> dict[str, str]:
    """Put a module in the place of each layer; the quantiser of each one's input, by the module's name."""
    graph = module.graph
    inputs: dict[str, str] = {}
    for node in [node for node in graph.nodes if _name(node) in (CONV, LINEAR)]:
        weight, bias = _tensor(module, node.args[1]), _bias(module, node)
        layer: QuantizedLayer
        if _name(node) == CONV:
            norm = norms.get(node)
            layer = QuantizedConv2d(weight, bias, largest=largest_weight, norm=norm, window=_window(node))
        else:
            layer = QuantizedLinear(weight, bias, largest=largest_weight)
        name = f"layer_{len(inputs)}"
        module.add_submodule(name, layer)
        inputs[name] = str(_node(node.args[0]).target)
        with graph.inserting_after(node):
            replacement = graph.call_module(name, (node.args[0],))
        node.replace_all_uses_with(replacement)
        graph.erase_node(node)
    return inputs


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_function" else ""


def _activations(node: fx.Node) -> list[fx.Node]:
    """What a node takes besides weights and numbers."""
    if _name(node) == CONCATENATE:
        given = node.args[0]
        assert isinstance(given, list | tuple)
        return [_node(each) for each in given]
    return [_node(each) for each in node.args[: 2 if _name(node) == ADD else 1]]


def _is_constant_sum(node: fx.Node) -> bool:
    """Whether it only shifts its input, as a normalisation of pixels may."""
    return _name(node) == ADD and any(not isinstance(each, fx.Node) or each.op == "get_attr" for each in node.args[:2])


def _behind_relu(node: fx.Node) -> fx.Node:
    users = list(node.users)
    return users[0] if len(users) == 1 and _name(users[0]) == RELU else node


def _is_answer(node: fx.Node) -> bool:
    """Whether it gives the logits, perhaps moved."""
    return all(user.op == "output" or (_name(user) in MOVES and _is_answer(user)) for user in node.users)


def _bias(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    given = node.args[2] if len(node.args) > 2 else None
    return None if given is None else _tensor(module, given)


def _window(node: fx.Node) -> Window:
    """Stride, padding, dilation and groups of a convolution; those at the end may have been left out."""
    defaults: tuple[Any, ...] = ([1, 1], [0, 0], [1, 1], 1)
    given: Any = node.args[3:]
    stride, padding, dilation, groups = (*given, *defaults[len(given) :])
    return Window(list(stride), list(padding), list(dilation), int(groups))


def _number(value: object) -> float:
    assert isinstance(value, float | int)
    return float(value)


def _node(value: object) -> fx.Node:
    assert isinstance(value, fx.Node)
    return value


def _tensor(module: fx.GraphModule, node: object) -> Tensor:
    value: object = module
    for part in str(_node(node).target).split("."):
        value = getattr(value, part)
    assert isinstance(value, Tensor)
    return value.detach()
