"""A model on disk: a folder with `weights.safetensors` and `card.json`.

The card says everything a later stage may ask: how to rebuild the network, its classes and images, where it comes
from. Both files are written under temporary names and moved into place, the card last, and the card holds the
weights' SHA-256, so that a killed writer or a changed file is found out on reading. The same network and card give the
same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import safetensors.torch
import torch
from pydantic import Field, JsonValue, ValidationError, field_validator

from compress.errors import ArtifactError, ModelError
from compress.files import write_whole
from compress.fingerprint import fingerprint
from compress.models import ModelSource, Network, Statistics, build_network
from compress.models.checkpoint import CARD_FILE, WEIGHTS_FILE, parse_safetensors
from compress.models.network import FiniteFloat
from compress.settings import NonNegativeInt, PositiveFloat, PositiveInt, Settings, Sha256


class ModelCard(Settings):
    """What is known about a saved network."""

    format_version: Literal[1] = 1
    """Version of this card's format."""
    architecture: ModelSource
    """The network without its weights: `source.architecture()`."""
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    """Class names in the order of the logits."""
    height: PositiveInt
    """Height of its images in pixels."""
    width: PositiveInt
    """Width of its images in pixels."""
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    """What the network subtracts from red, green and blue in [0, 1]."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    """What the network then divides by."""
    preprocessing: dict[str, JsonValue]
    """How a photo becomes an image of this size; copied from the prepared data."""
    training: dict[str, JsonValue] | None = None
    """Settings it was trained with; none where its weights were loaded."""
    seed: int | None = None
    """Seed of the training run."""
    epoch: NonNegativeInt | None = None
    """Number of finished epochs."""
    metrics: dict[str, FiniteFloat] = Field(default_factory=dict)
    """Measured values by name, such as validation accuracy in [0, 1]."""
    num_parameters: NonNegativeInt
    """Trainable numbers."""
    flops: NonNegativeInt
    """Floating-point operations for one image."""
    fingerprint: str
    """SHA-256 over everything that determines the weights."""
    lineage: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of what it was made from, by name."""
    origin: dict[str, JsonValue] | None = None
    """How to train it again (`recipe`), with which code and packages and on which machine it was trained; none where
    its weights were loaded."""
    rounding: dict[str, JsonValue] | None = None
    """How a network rounds that was trained for its 8-bit file; none for all others."""
    weights_sha256: Sha256 | None = None
    """SHA-256 of the weights file; `save_model` fills it in."""
    card_sha256: Sha256 | None = None
    """SHA-256 of all other fields; `save_model` fills it in."""

    @property
    def saved_sha256(self) -> str:
        """SHA-256 of the weights of a saved network: its identity.

        Raises:
            ValueError: the card was never saved.
        """
        if self.weights_sha256 is None:
            raise ValueError("this card has no weights yet; save_model returns the one that has")
        return self.weights_sha256

    def compute_card_sha256(self) -> str:
        """What `card_sha256` must be."""
        return fingerprint(self.model_dump(mode="json", exclude={"card_sha256"}))

    @property
    def statistics(self) -> Statistics:
        """Mean and deviation as the network takes them."""
        return Statistics(mean=self.mean, std=self.std)

    @field_validator("architecture")
    @classmethod
    def _architecture_is_without_weights(cls, architecture: ModelSource) -> ModelSource:
        # Rebuilding must never download anything, nor look for a file on another machine.
        if architecture.brings_weights or architecture.statistics is not None:
            raise ValueError("a card keeps a network without its weights; pass source.architecture()")
        return architecture


def save_model(folder: Path, network: Network, card: ModelCard) -> ModelCard:
    """Write weights and card into `folder`, replacing what is there, and return the card as written.

    Raises:
        ValueError: the card's statistics are not those of the network.
        ArtifactError: the folder cannot be written.
    """
    if network.statistics != card.statistics:
        raise ValueError(f"the network normalises with {network.statistics}, its card says {card.statistics}")
    return write_artifact(folder, network.state_dict(), card)


def write_artifact(folder: Path, state: Mapping[str, torch.Tensor], card: ModelCard) -> ModelCard:
    """Write a network's state and its card into `folder`, replacing what is there, and return the card as written.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    # Safetensors wants contiguous tensors that share no memory; cloning covers channels-last and tied weights.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()
    }
    weights = safetensors.torch.save(tensors)
    written = card.model_copy(update={"weights_sha256": hashlib.sha256(weights).hexdigest()})
    written = written.model_copy(update={"card_sha256": written.compute_card_sha256()})
    content = json.dumps(written.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    try:
        write_whole(folder / WEIGHTS_FILE, weights)
        write_whole(folder / CARD_FILE, f"{content}\n".encode())
    except OSError as error:
        raise ArtifactError(
            f"cannot write the model to {folder}: {error.strerror}; choose a writable folder"
        ) from error
    return written


def load_model(folder: Path) -> tuple[Network, ModelCard]:
    """The network in evaluation mode, with the weights the card describes, and the card. Downloads nothing.

    Raises:
        ArtifactError: a file is missing, damaged, or not the one the card describes.
    """
    card, state = read_artifact(folder)
    with rebuilding(folder):
        network = unloaded(card)
        network.load_state_dict(state)
    return network.eval(), card


def unloaded(card: ModelCard) -> Network:
    """The network that a card describes, with fresh weights."""
    return build_network(
        card.architecture,
        num_classes=len(card.classes),
        image_size=(card.height, card.width),
        statistics=card.statistics,
    )


def read_artifact(folder: Path) -> tuple[ModelCard, dict[str, torch.Tensor]]:
    """The card, and the state that it describes.

    Raises:
        ArtifactError: a file is missing, damaged, or not the one the card describes.
    """
    card = load_card(folder)
    weights_path = folder / WEIGHTS_FILE
    try:
        weights = weights_path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"no weights in {folder}: {WEIGHTS_FILE} cannot be read ({error.strerror}); run the stage that trains it"
        ) from error
    if hashlib.sha256(weights).hexdigest() != card.weights_sha256:
        raise ArtifactError(
            f"{weights_path} is not the file its card describes (SHA-256 differs); run the stage that trains it again"
        )
    with rebuilding(folder):
        return card, parse_safetensors(weights)


@contextmanager
def rebuilding(folder: Path) -> Generator[None]:
    """Whatever goes wrong inside is an ArtifactError that names the folder."""
    try:
        yield
    except (ModelError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(
            f"the model in {folder} cannot be rebuilt ({reason}); run the stage that trains it again"
        ) from error


def load_card(folder: Path) -> ModelCard:
    """The card alone, without reading the weights.

    Raises:
        ArtifactError: it is missing, damaged or of another version.
    """
    path = folder / CARD_FILE
    try:
        card = ModelCard.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise ArtifactError(f"no model in {folder}: {CARD_FILE} is missing; run the stage that trains it") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}; make it readable") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "its text"
        raise ArtifactError(
            f"{path} is not a model card of this version ({where}: {first['msg']}); run the stage that trains it again"
        ) from error
    if card.card_sha256 not in (None, card.compute_card_sha256()):
        raise ArtifactError(
            f"{path} was changed after it was written: its SHA-256 does not fit; run the stage that trains it again"
        )
    return card
