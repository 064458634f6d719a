"""Networks of torchvision, with random weights or with the library's published ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, final

from torch import Tensor, nn

from compress.errors import ModelError
from compress.models.calls import Call, recorded_calls
from compress.models.network import Backbone, Statistics
from compress.models.source import Created, Source, check_answers, unknown_name
from compress.models.weights import Destination, load_weights_
from compress.types import Answer, Features, FloatImages, Logits

# These answer with auxiliary outputs beside the logits while training.
EXCLUDED = ("googlenet", "inception_v3")


@final
class Torchvision(Source):
    """A classification network of torchvision."""

    source: Literal["torchvision"] = "torchvision"
    name: str
    """Name in torchvision's registry, such as `resnet18`."""
    weights: str | None = None
    """Published weights to load, such as `IMAGENET1K_V1` or `DEFAULT`."""

    @property
    def label(self) -> str:
        return self.name

    def weight_settings(self) -> tuple[str, ...]:
        given = {"weights": self.weights is not None, "checkpoint": self.checkpoint is not None}
        return tuple(name for name, is_given in given.items() if is_given)

    def create(self, *, num_classes: int, image_size: tuple[int, int], replace_head: bool) -> Created:
        from torchvision import models

        known = [name for name in models.list_models(module=models) if name not in EXCLUDED]
        if self.name not in known:
            raise unknown_name(self.name, known, library="torchvision")
        published = None if self.weights is None else _find_weights(self.name, self.weights)
        model = _create(self.name, num_classes=num_classes, image_size=image_size)
        if published is not None:
            load_weights_(
                Destination(model, self.name, num_classes),
                _download(published),
                origin=f"torchvision's {published}",
                replace_head=replace_head,
            )
        backbone = TorchvisionBackbone(model, label=self.name)
        check_answers(backbone, label=self.name, num_classes=num_classes, image_size=image_size)
        return Created(backbone, None if published is None else _statistics(published))

    def architecture(self) -> Torchvision:
        return Torchvision(name=self.name)


@final
class TorchvisionBackbone(Backbone):
    """A torchvision network under the name `model`."""

    def __init__(self, model: nn.Module, *, label: str) -> None:
        super().__init__()
        self.model = model
        self.label = label

    def forward(self, images: FloatImages) -> Logits:
        return self.model(images)

    def answer(self, images: FloatImages) -> Answer:
        """The maps are the last at each resolution; of the transformer `vit`, one per block.

        torchvision has no interface to features: modules are watched while `forward` runs. The pooled feature is what
        the last linear layer is given, behind a dropout where there is one.
        """
        linear = next((layer for layer in reversed([*self.model.modules()]) if isinstance(layer, nn.Linear)), None)
        if linear is None:
            raise self._without_features()
        shown = [module for module in _shown(self.model) if module is not linear]
        with recorded_calls([*shown, linear]) as calls:
            logits: Tensor = self.model(images)
        last = [call for call in calls if call.module is linear]
        if len(last) != 1 or last[0].returned is not logits:
            raise self._without_features()
        passed = [call for call in calls if call.module is not linear and isinstance(call.returned, Tensor)]
        return Answer(logits, _features(self.model, passed, pooled=last[0].given))

    def _without_features(self) -> ModelError:
        return ModelError(
            f"{self.label} from torchvision has no interface to its features, for it does not end in a linear layer; "
            "take another network, or use a method that distils logits alone"
        )


def _shown(model: Any) -> list[nn.Module]:
    """The modules among whose outputs the maps are."""
    from torchvision.models import SwinTransformer, VisionTransformer

    if isinstance(model, VisionTransformer):
        return [model.conv_proj, *model.encoder.layers, model.encoder.ln]
    if isinstance(model, SwinTransformer):
        return [*model.features, model.permute]
    return [part for child in model.children() for part in (*child.children(), child)]


def _features(model: nn.Module, calls: Sequence[Call], *, pooled: Tensor) -> Features:
    from torchvision.models import SwinTransformer, VisionTransformer

    if isinstance(model, VisionTransformer):
        grid = calls[0].returned.shape[2:]
        tokens = [call.returned for call in calls[1:]]
        maps = [each[:, 1:].transpose(1, 2).unflatten(2, grid) for each in tokens]
        return Features(pooled, tuple(maps[:-1]), maps[-1], tuple(each[:, 0] for each in tokens[:-1]))
    if isinstance(model, SwinTransformer):
        # Channels are last everywhere but in the map that is pooled.
        stages = _last_of_each_size([call.returned.permute(0, 3, 1, 2) for call in calls[:-1]])
        return Features(pooled, stages, calls[-1].returned)
    until_pooling = takewhile(lambda call: not isinstance(call.module, nn.AdaptiveAvgPool2d), calls)
    maps = _last_of_each_size([call.returned for call in until_pooling if call.returned.ndim == 4])
    return Features(pooled, maps, maps[-1])


def _last_of_each_size(maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple({each.shape[2:]: each for each in maps}.values())


def _create(name: str, *, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
    from torchvision.models import get_model

    if not name.startswith("vit_"):
        return get_model(name, num_classes=num_classes)
    height, width = image_size
    try:
        assert height == width, "it takes square images only"
        return get_model(name, num_classes=num_classes, image_size=height)
    except AssertionError as error:
        raise ModelError(f"{name} cannot take images of {height}x{width} pixels ({error}); set another size") from error


def _find_weights(name: str, weights: str) -> Any:
    from torchvision.models import get_model_weights

    published = get_model_weights(name)
    try:
        return published[weights]
    except KeyError as error:
        known = ", ".join(published.__members__) or "none"
        raise ModelError(f"torchvision has no weights {weights!r} for {name}; it has {known}") from error


def _download(published: Any) -> Mapping[str, Tensor]:
    try:
        tensors = published.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu")
    # No network, a broken transfer or a damaged file in the cache: unrelated types that all mean: no weights.
    except Exception as error:
        raise ModelError(
            f"the weights {published} cannot be loaded ({error}); where the network is out of reach, give a local copy "
            f"of {Path(published.url).name} as `checkpoint`"
        ) from error
    # The published DenseNets were saved when the layers of a block still had dotted names.
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): tensors[key] for key in tensors}


def _statistics(published: Any) -> Statistics:
    transforms = published.transforms()
    return Statistics(mean=tuple(transforms.mean), std=tuple(transforms.std))
