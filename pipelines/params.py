"""Reading params.yaml: the only module that knows YAML.

Each stage declares a Settings class whose fields are the sections that it reads; nothing else of the file reaches it.
"""

from __future__ import annotations

import difflib
import re
import types
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from compress.errors import ParamsError
from compress.settings import Settings

SECTIONS = ("data", "views", "teacher", "teacher_logits", "students", "export", "evaluate", "select")
ANCHOR_PREFIX = "x-"
"""Top-level keys with this prefix are ignored; they hold YAML anchors for reuse."""
MOST_SHOWN = 5
MAX_BYTES = 1_000_000
MAX_VALUES = 100_000
"""Values in the file, each counted as often as an anchor repeats it."""

S = TypeVar("S", bound=Settings)


def load_params(sections: type[S], path: Path) -> S:
    """Read the sections that a stage declares.

    Raises:
        ParamsError: the file is missing or not YAML, or a value is missing, unknown or out of range;
            the message names the dotted key and the valid choices.
    """
    params = read_yaml(path)
    unknown = [key for key in params if key not in SECTIONS and not str(key).startswith(ANCHOR_PREFIX)]
    if unknown:
        raise ParamsError(f"{path.name}: {unknown[0]}: unknown section{_choices(str(unknown[0]), SECTIONS)}")
    wanted = {name: params[name] for name in sections.model_fields if name in params}
    try:
        return sections.model_validate(wanted)
    except ValidationError as error:
        details = error.errors(include_url=False)
        # A value shared through a YAML anchor is wrong in every row; it is told once.
        distinct = {(detail["type"], detail["loc"][-1:], repr(detail["input"])): detail for detail in reversed(details)}
        lines = [_describe(detail, wanted, sections) for detail in reversed(distinct.values())][:MOST_SHOWN]
        more = f" (and {len(details) - len(lines)} more)" if len(details) > len(lines) else ""
        raise ParamsError(f"{path.name}: " + "; ".join(lines) + more) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        ParamsError: the file is missing, not YAML, or not a mapping.
    """
    try:
        content = _parse(path)
    except OSError as error:
        raise ParamsError(
            f"cannot read {path}: {error.strerror}; run this in the project's folder, "
            "or copy a file from pipelines/recipes/ to params.yaml"
        ) from error
    # Dates and numbers that are none surface as whatever PyYAML's constructors trip over.
    except (yaml.YAMLError, ValueError, ArithmeticError, AttributeError, TypeError, LookupError) as error:
        raise ParamsError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ParamsError(f"{path.name} is nested too deeply; write it flatter") from error
    if not isinstance(content, dict):
        raise ParamsError(f"{path.name}: expected sections ({', '.join(SECTIONS)}), got {type(content).__name__}")
    return content


def _parse(path: Path) -> Any:
    """The content of a YAML file, plain values only, of a size that its reader can see."""
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ParamsError(f"{path.name} has {size} bytes, at most {MAX_BYTES} are read; write less into it")
    loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
    try:
        root = loader.get_single_node()
        # An alias of aliases of aliases is a short file with a thousand million values.
        if root is not None and _num_values(root, {}) > MAX_VALUES:
            raise ParamsError(f"{path.name} unfolds to more than {MAX_VALUES} values; repeat fewer anchors")
        return None if root is None else loader.construct_document(root)
    finally:
        loader.dispose()


def _num_values(node: yaml.Node, known: dict[yaml.Node, float]) -> float:
    """Values of a node with all its aliases unfolded; infinity where it contains itself."""
    if node not in known:
        known[node] = float("inf")
        match node:
            case yaml.SequenceNode():
                inner = node.value
            case yaml.MappingNode():
                inner = [part for pair in node.value for part in pair]
            case _:
                inner = []
        known[node] = 1 + sum(_num_values(part, known) for part in inner)
    return known[node]


def _describe(detail: ErrorDetails, params: dict[str, Any], sections: type[BaseModel]) -> str:
    keys, owner = _resolve(detail["loc"], params, sections)
    dotted = ".".join(keys)
    context = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            valid = tuple(owner.model_fields) if owner else ()
            return f"{dotted}: unknown key{_choices(keys[-1], valid)}"
        case "missing":
            return f"{dotted}: missing; add it"
        case "union_tag_invalid":
            field = str(context["discriminator"]).strip("'")
            expected = tuple(tag.strip(" '") for tag in str(context["expected_tags"]).split(","))
            return f"{dotted}.{field}: unknown {context['tag']!r}{_choices(str(context['tag']), expected)}"
        case "union_tag_not_found":
            return f"{dotted}.{str(context['discriminator']).strip(chr(39))}: missing; it says which kind this is"
        case "literal_error":
            expected = tuple(re.findall(r"'([^']*)'", str(context["expected"])))
            return f"{dotted}: unknown {detail['input']!r}{_choices(str(detail['input']), expected)}"
        case "value_error":
            return f"{dotted}: {context['error']}" if dotted else str(context["error"])
        case _:
            return f"{dotted}: {detail['msg'][0].lower()}{detail['msg'][1:]}, got {_shown(detail['input'])}"


def _resolve(
    location: tuple[int | str, ...], params: Any, owner: type[BaseModel]
) -> tuple[list[str], type[BaseModel] | None]:
    """Turn pydantic's location into keys of the file, and find the settings class that holds the last key.

    Inside a union pydantic puts the tag into the location; it is no key of the file and is left out.
    """
    keys: list[str] = []
    annotation: Any = owner
    holder: type[BaseModel] | None = owner
    for position, part in enumerate(location):
        models = _models(annotation)
        by_tag = {tag: model for model in models for tag in _tags(model)}
        is_last = position == len(location) - 1
        in_file = isinstance(params, dict) and part in params
        if part in by_tag and not in_file and not is_last:
            annotation = by_tag[str(part)]
            continue
        holder = models[0] if len(models) == 1 else None
        keys.append(str(part))
        params = _item(params, part)
        annotation = _inside(annotation, holder, part)
    return keys, holder


def _item(params: Any, part: int | str) -> Any:
    if isinstance(params, dict):
        return params.get(part)
    return params[part] if isinstance(params, list) and isinstance(part, int) else None


def _inside(annotation: Any, holder: type[BaseModel] | None, part: int | str) -> Any:
    if holder is not None and part in holder.model_fields:
        field = holder.model_fields[str(part)]
        return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    arguments = get_args(annotation)
    return arguments[-1] if get_origin(annotation) is dict else (arguments[0] if arguments else None)


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes among an annotation's alternatives."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return [model for argument in get_args(annotation) for model in _models(argument)]
    return []


def _tags(model: type[BaseModel]) -> tuple[str, ...]:
    for name in ("source", "name"):  # the fields that tell the members of our unions apart
        if name in model.model_fields and len(literals := get_args(model.model_fields[name].annotation)) == 1:
            return literals
    return ()


def _choices(given: str, valid: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(given, valid, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{meant} valid: {', '.join(valid)}" if valid else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
