"""Putting weights from a file into a network, completely or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from compress.errors import ModelError

# What training wrappers put before every name: data parallelism, torch.compile, and modules that hold the network.
PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.")
# Old files lack this counter, which plays no part where the momentum of the running statistics is fixed.
OPTIONAL_SUFFIX = "num_batches_tracked"


class Destination(NamedTuple):
    """The network that weights are for, as far as messages need to know it."""

    network: nn.Module
    label: str
    num_classes: int


def load_weights_(destination: Destination, tensors: Mapping[str, Tensor], *, origin: str, replace_head: bool) -> None:
    """Copy tensors into the network, in place; names are matched after dropping prefixes that all of a side share.

    With `replace_head`, a last layer for another number of classes is left out and the network keeps its fresh one.

    Raises:
        ModelError: names, shapes, kinds or the number of classes differ, or a tensor is not finite; nothing is copied.
            `origin` names the weights in the message.
    """
    wanted = without_shared_prefixes(destination.network.state_dict())
    found = without_shared_prefixes(tensors)
    _check_names(destination, wanted, found, origin=origin)
    head = _head_of_other_size(destination, wanted, found)
    if head and not replace_head:
        raise ModelError(
            f"{origin} has {found[head[0]].shape[0]} classes, the data has {destination.num_classes}: a loaded "
            "network must know the classes of the data; take weights of these classes, or train from these weights "
            "with a new last layer"
        )
    loaded = {name: tensor for name, tensor in found.items() if name not in head}
    _check_tensors(destination, wanted, loaded, origin=origin)
    with torch.no_grad():
        for name, tensor in loaded.items():
            wanted[name].copy_(tensor)


def without_shared_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under names without the known prefixes, repeatedly, as long as every name has one in common."""
    current = dict(tensors)
    while True:
        shared = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in current)), None)
        if shared is None or not current:
            return current
        current = {name.removeprefix(shared): tensor for name, tensor in current.items()}


def _check_names(
    destination: Destination, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], *, origin: str
) -> None:
    missing = [name for name in wanted if name not in found and not name.endswith(OPTIONAL_SUFFIX)]
    unexpected = [name for name in found if name not in wanted]
    if not missing and not unexpected:
        return
    sides: list[str] = []
    if missing:
        sides.append(f"{len(missing)} of the network's tensors are not in it ({_few(missing)})")
    if unexpected:
        sides.append(f"{len(unexpected)} of its tensors are not in the network ({_few(unexpected)})")
    raise ModelError(
        f"{origin} does not fit {destination.label}: {' and '.join(sides)}; name the architecture it was trained with"
    )


def _head_of_other_size(
    destination: Destination, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> list[str]:
    """Names of the last layer's tensors where the file has another number of classes, else nothing.

    The last layer is known by its shape: the tensors that differ are whole layers, and each has one row per class here
    and one common other number of rows there.
    """
    differing = [name for name, tensor in found.items() if tensor.shape != wanted[name].shape]
    layers = {_layer(name) for name in differing}
    is_head = all(name in differing for name in found if _layer(name) in layers) and all(
        wanted[name].shape[:1] == (destination.num_classes,)
        and found[name].ndim == wanted[name].ndim
        and found[name].shape[1:] == wanted[name].shape[1:]
        for name in differing
    )
    return differing if is_head and len({found[name].shape[0] for name in differing}) == 1 else []


def _check_tensors(
    destination: Destination, wanted: Mapping[str, Tensor], loaded: Mapping[str, Tensor], *, origin: str
) -> None:
    differing = [name for name, tensor in loaded.items() if tensor.shape != wanted[name].shape]
    if differing:
        shapes = [f"{name} is {list(loaded[name].shape)}, not {list(wanted[name].shape)}" for name in differing]
        raise ModelError(
            f"{origin} does not fit {destination.label}: {len(differing)} tensors have another shape "
            f"({_few(shapes)}); name the architecture it was trained with"
        )
    # Shapes agree by now, so that looking at the values costs no more memory than the network has.
    for name, tensor in loaded.items():
        if not _is_plain(tensor) or tensor.is_floating_point() != wanted[name].is_floating_point():
            raise ModelError(f"{origin} holds {name} as {_kind(tensor)}, not as {_kind(wanted[name])}; export it anew")
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{origin} holds values in {name} that are not finite; take weights that did not diverge")


def _is_plain(tensor: Tensor) -> bool:
    is_ordinary = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and not tensor.is_quantized
    return is_ordinary and tensor.device.type == "cpu"


def _kind(tensor: Tensor) -> str:
    form = "plain" if _is_plain(tensor) else f"{tensor.layout} {tensor.device.type}"
    return f"a {form} tensor of {tensor.dtype}"


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
