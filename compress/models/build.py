"""From settings to a network with its weights in place."""

from __future__ import annotations

from compress.models.checkpoint import read_checkpoint
from compress.models.network import Backbone, Network, Statistics
from compress.models.source import Source
from compress.models.weights import Destination, load_weights_


def build_network(
    source: Source,
    *,
    num_classes: int,
    image_size: tuple[int, int],
    statistics: Statistics,
    replace_head: bool = False,
) -> Network:
    """A network in training mode on the CPU; random weights come from torch's global generator, which the caller seeds.

    Args:
        source: Architecture, and where its weights come from.
        num_classes: Number of logits.
        image_size: Height and width in pixels of the images it will see.
        statistics: Those of the data; used unless the source states its own or its weights bring theirs along.
        replace_head: Allow loaded weights of another number of classes and give them a fresh last layer: for a
            start of training. Without it, they are an error: such a network knows nothing about the data's classes.

    Raises:
        ModelError: unknown name, weights that cannot be read, do not fit or have another number of classes, or an
            image size that the network cannot take.
    """
    if num_classes < 1 or min(image_size) < 1:
        raise ValueError(f"num_classes and image_size must be positive, got {num_classes} and {image_size}")
    backbone, own_statistics = source.create(num_classes=num_classes, image_size=image_size, replace_head=replace_head)
    if source.checkpoint is not None:
        checkpoint = read_checkpoint(source.checkpoint, network_bytes=_size_bytes(backbone))
        load_weights_(
            Destination(backbone, source.label, num_classes),
            checkpoint.tensors,
            origin=f"checkpoint {source.checkpoint}",
            replace_head=replace_head,
        )
        own_statistics = checkpoint.statistics
    return Network(backbone, source.statistics or own_statistics or statistics)


def _size_bytes(backbone: Backbone) -> int:
    return sum(tensor.nbytes for tensor in backbone.state_dict().values())
