"""A network that rounds on disk: an artifact like any other whose card also says how it rounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compress.artifact import ModelCard, read_artifact, rebuilding, unloaded, write_artifact
from compress.errors import ArtifactError
from compress.quantize.qat import QatNetwork, QatSettings, quantization_aware


def save_quantization_aware(folder: Path, network: QatNetwork, card: ModelCard) -> ModelCard:
    """Write a network that rounds; `card` is that of the network it was made of. Returns the card as written.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    return write_artifact(folder, network.state_dict(), card.model_copy(update={"rounding": network.facts}))


def load_quantization_aware(folder: Path) -> tuple[QatNetwork, ModelCard]:
    """A network that rounds, in evaluation mode, and its card.

    Raises:
        ArtifactError: a file is missing or damaged, or the network does not round.
    """
    card, state = read_artifact(folder)
    if card.rounding is None:
        raise ArtifactError(f"the network in {folder} does not round; load it with load_model")
    size = (card.height, card.width)
    with rebuilding(folder):
        settings = QatSettings.model_validate(card.rounding["settings"])
        # What is observed here does not matter: the state holds what was learned.
        network = quantization_aware(
            unloaded(card), image_size=size, calibration=[np.zeros((1, *size, 3), np.uint8)], settings=settings
        )
        network.load_state_dict(state)
        network.num_calibration_images = int(str(card.rounding["num_calibration_images"]))
    return network.eval(), card
