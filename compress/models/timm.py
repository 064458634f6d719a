"""Networks of the timm library: with random weights, with weights from the hub, or from a local hub-format folder."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import torch
from pydantic import Field, JsonValue, field_validator
from torch import Tensor, nn

from compress.errors import ModelError
from compress.models.calls import recorded_calls
from compress.models.network import Backbone, Statistics
from compress.models.source import Created, Source, check_answers, unknown_name
from compress.types import Answer, Features, FloatImages, Logits

LOCAL_SCHEME = "local-dir:"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
# Arguments that this project decides, or that would make timm read a file behind our back.
RESERVED_ARGUMENTS = ("num_classes", "in_chans", "img_size", "checkpoint_path", "cache_dir", "features_only", "file")


@final
class Timm(Source):
    """A network of timm. At most one of `pretrained`, `folder` and `checkpoint` says where its weights come from."""

    source: Literal["timm"] = "timm"
    name: str
    """Name in timm's registry, such as `resnet18` or, with the weights' tag, `resnet18.a1_in1k`."""
    pretrained: bool = False
    """Download the weights of that name from the hub, or take them from the hub's local cache."""
    folder: Path | None = None
    """Local folder in the hub's format (config.json and model.safetensors) to take the weights from."""
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Further arguments of the network's constructor, such as `drop_path_rate`."""

    @property
    def label(self) -> str:
        return self.name

    def weight_settings(self) -> tuple[str, ...]:
        given = {
            "pretrained": self.pretrained,
            "folder": self.folder is not None,
            "checkpoint": self.checkpoint is not None,
        }
        return tuple(name for name, is_given in given.items() if is_given)

    def create(self, *, num_classes: int, image_size: tuple[int, int], replace_head: bool) -> Created:
        import timm

        if not timm.is_model(self.name):
            raise unknown_name(self.name, timm.list_models(), library="timm")
        plan = self._plan()
        if plan.num_pretrained_classes not in (None, num_classes) and not replace_head:
            raise ModelError(
                f"the weights of {plan.origin} have {plan.num_pretrained_classes} classes, the data has {num_classes}: "
                "a loaded network must know the classes of the data; take weights of these classes, or train from "
                "these weights with a new last layer"
            )
        size = {"img_size": image_size} if plan.takes_image_size else {}
        arguments = {**size, **self.arguments}
        if plan.num_pretrained_classes not in (None, num_classes):
            # timm compares names only where the number of classes agrees, and elsewhere silently keeps random weights
            # for what it misses: so see first that all of them fit the network they were trained with.
            _create(plan, num_classes=plan.num_pretrained_classes, arguments=arguments)
        model = _create(plan, num_classes=num_classes, arguments=arguments)
        backbone = TimmBackbone(model, label=self.name)
        check_answers(backbone, label=self.name, num_classes=num_classes, image_size=image_size)
        return Created(backbone, _statistics(model) if plan.is_pretrained else None)

    def architecture(self) -> Timm:
        arguments = self.arguments
        if self.folder is not None:
            arguments = {**_read_config(self.folder).arguments, **arguments}
        return Timm(name=self.name, arguments=arguments)

    @field_validator("arguments")
    @classmethod
    def _arguments_are_not_reserved(cls, arguments: dict[str, JsonValue]) -> dict[str, JsonValue]:
        reserved = _reserved(arguments)
        if reserved:
            raise ValueError(f"{', '.join(reserved)} cannot be set here: it follows from the data or another setting")
        return arguments

    def _plan(self) -> _Plan:
        from timm.models import get_pretrained_cfg

        try:
            known = get_pretrained_cfg(self.name)
        except RuntimeError as error:
            raise _unknown_tag(self.name) from error
        is_fixed = known is not None and known.fixed_input_size
        if self.folder is not None:
            config = _read_config(self.folder)
            if config.architecture != self.name.split(".")[0]:
                raise ModelError(
                    f"{self.folder} holds the network {config.architecture}, not {self.name}; set that name"
                )
            return _Plan(
                f"{LOCAL_SCHEME}{self.folder}", str(self.folder), config.num_classes, is_fixed, is_pretrained=True
            )
        if not self.pretrained:
            return _Plan(self.name, self.name, None, is_fixed, is_pretrained=False)
        if known is None or not known.has_weights:
            raise _unknown_tag(self.name)
        return _Plan(self.name, self.name, known.num_classes, is_fixed, is_pretrained=True)


@final
class TimmBackbone(Backbone):
    """A timm network under the name `model`."""

    def __init__(self, model: nn.Module, *, label: str) -> None:
        super().__init__()
        self.model = model
        self.label = label

    def forward(self, images: FloatImages) -> Logits:
        return self.model(images)

    def answer(self, images: FloatImages) -> Answer:
        """The maps are timm's intermediate features: one per stage, or per block of a transformer, channels second.

        The logits are those of `forward`, bit for bit. A network with two classifiers (distilled ones) has the mean of
        what both are given as its pooled feature.
        """
        final, maps, class_tokens = self._trunk(images)
        model: Any = self.model
        with recorded_calls(_layers(model.get_classifier())) as calls:
            logits: Tensor = model.forward_head(final)
        given = [call.given.flatten(1) for call in calls if call.returned.flatten(1).shape == logits.shape]
        if not given:
            raise self._without_features()
        # A hidden layer of the head may happen to be as wide as there are classes; it is not the last.
        pooled = torch.stack([each for each in given if each.shape == given[-1].shape]).mean(dim=0)
        last_map = _as_map(final, maps[-1], channels_last=_layout(model) == "NHWC")
        return Answer(logits, Features(pooled, tuple(maps), last_map, class_tokens))

    def _trunk(self, images: FloatImages) -> tuple[Tensor, list[Tensor], tuple[Tensor, ...]]:
        """What the head is given, the intermediate maps, and the class token after each of them if there is one."""
        model: Any = self.model
        try:
            trunk, _, _ = model.forward_intermediates, model.forward_head, model.get_classifier
        except AttributeError as error:
            raise self._without_features() from error
        if _has_class_tokens(model):
            final, pairs = trunk(images, return_prefix_tokens=True)
            # The class token is the first of the prefix; those of distillation and the registers follow.
            maps, class_tokens = [pair[0] for pair in pairs], tuple(pair[1][:, 0] for pair in pairs)
        else:
            (final, maps), class_tokens = trunk(images), ()
        if not isinstance(final, Tensor) or any(each.ndim != 4 for each in maps):  # several branches side by side
            raise self._without_features()
        return final, list(maps), class_tokens

    def _without_features(self) -> ModelError:
        return ModelError(
            f"{self.label} has no interface to its features in timm; use a method that distils logits alone"
        )


def _has_class_tokens(model: Any) -> bool:
    # Attributes and arguments that only some of timm's transformers have.
    shows_prefix = "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters
    return shows_prefix and getattr(model, "cls_token", None) is not None


def _layout(model: Any) -> str:
    return getattr(model, "output_fmt", "NCHW")


def _layers(classifier: nn.Module | Sequence[nn.Module]) -> list[nn.Module]:
    """The linear layers of a network's classifier, or of its classifiers; some are written as convolutions."""
    classifiers = [classifier] if isinstance(classifier, nn.Module) else classifier
    return [layer for each in classifiers for layer in each.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


def _as_map(final: Tensor, like: Tensor, *, channels_last: bool) -> Tensor:
    """What the head is given as a map with channels second; `like` where it is given no map."""
    if final.ndim == 4:
        return final.permute(0, 3, 1, 2) if channels_last else final
    height, width = like.shape[2:]
    num_prefix_tokens = final.shape[1] - height * width
    if num_prefix_tokens < 0:
        return like
    return final[:, num_prefix_tokens:].transpose(1, 2).unflatten(2, (height, width))


class _Plan(NamedTuple):
    timm_name: str
    origin: str
    num_pretrained_classes: int | None
    takes_image_size: bool
    is_pretrained: bool

    @property
    def advice(self) -> str:
        if self.timm_name.startswith(LOCAL_SCHEME):
            return "they must be whole and belong to the network in its config; save the folder again"
        return f"where the hub is out of reach, give a local folder with {CONFIG_FILE} and {WEIGHTS_FILE} as `folder`"


class _Config(NamedTuple):
    architecture: str
    num_classes: int
    arguments: dict[str, JsonValue]


def _create(plan: _Plan, *, num_classes: int | None, arguments: dict[str, Any]) -> nn.Module:
    import timm

    try:
        return timm.create_model(plan.timm_name, pretrained=plan.is_pretrained, num_classes=num_classes, **arguments)
    except TypeError as error:
        raise ModelError(f"timm cannot build {plan.origin} with {arguments}: {error}; correct `arguments`") from error
    # The hub client, its transport and the readers of the weights raise unrelated types; all mean: no weights.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if not plan.is_pretrained:
            raise ModelError(f"timm cannot build {plan.origin} with {arguments}: {reason}") from error
        raise ModelError(
            f"the pretrained weights of {plan.origin} cannot be loaded ({reason}); {plan.advice}"
        ) from error


def _read_config(folder: Path) -> _Config:
    path = folder / CONFIG_FILE
    for needed in (path, folder / WEIGHTS_FILE):
        if not needed.is_file():
            raise ModelError(
                f"{folder} is no model folder in the hub's format: {needed.name} is missing; it needs {CONFIG_FILE} "
                f"and {WEIGHTS_FILE}"
            )
    try:
        content = json.loads(path.read_bytes())
        pretrained_cfg = content.get("pretrained_cfg", content)
        if pretrained_cfg.get("custom_load"):
            raise ModelError(
                f"{path} asks for weights of a foreign format (custom_load); save it with timm's save_for_hf"
            )
        arguments = dict(content.get("model_args", {}))
        kept = {name: arguments[name] for name in arguments if name not in _reserved(arguments)}
        num_classes = int(content.get("num_classes", pretrained_cfg.get("num_classes")))
        return _Config(str(content["architecture"]), num_classes, kept)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{path} cannot be read as the description of a timm model ({error!r}); save it anew"
        ) from error


def _reserved(arguments: Sequence[str] | dict[str, JsonValue]) -> list[str]:
    return [name for name in arguments if name in RESERVED_ARGUMENTS or name.startswith("pretrained")]


def _statistics(model: nn.Module) -> Statistics:
    pretrained_cfg: Any = model.pretrained_cfg
    return Statistics(mean=tuple(pretrained_cfg["mean"]), std=tuple(pretrained_cfg["std"]))


def _unknown_tag(name: str) -> ModelError:
    import timm

    tagged = timm.list_pretrained(f"{name.split('.')[0]}.*")
    if tagged:
        return ModelError(f"timm has no weights {name!r}; it has {', '.join(tagged[:6])}")
    return ModelError(f"timm has no pretrained weights for {name}; drop `pretrained`, or give a folder or checkpoint")
