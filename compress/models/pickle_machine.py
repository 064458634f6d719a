"""Following a pickle's instructions without doing what they say.

Values are stand-ins: a call becomes a note of what it would make. Only what plain weights need is let through, so that
torch's unpickler, which reads the file afterwards, calls nothing that takes memory or time beyond the file's own size:
no `bytearray(10**11)`, no tuples of tuples of tuples as keys (they take for ever to hash), no tensor that its storage
does not hold.
"""

from __future__ import annotations

import io
import math
import mmap
import pickletools
import re
from dataclasses import dataclass, field
from typing import IO, NamedTuple, cast

MAX_INSTRUCTIONS = 500_000
"""Of one pickle. A thousand tensors with the optimiser's moments take about 80,000."""
MAX_DIMENSIONS = 64

ELEMENT_BYTES = {
    **dict.fromkeys(("BoolStorage", "ByteStorage", "CharStorage"), 1),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    "ComplexDoubleStorage": 16,
}
STORAGES = frozenset(f"torch.{name}" for name in ELEMENT_BYTES)
REBUILDS = frozenset({"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"})
PARAMETER = "torch._utils._rebuild_parameter"
MAPPINGS = frozenset({"collections.OrderedDict", "collections.Counter"})
CALLABLE = MAPPINGS | REBUILDS | {PARAMETER, "_codecs.encode", "builtins.set", "torch.Size", "torch.device"}
DTYPE = re.compile(r"torch\.(b?float|u?int|complex|bool)\w*")
LITERALS = frozenset({"BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1"})
CONSTANTS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class UnsafePickleError(ValueError):
    """A file asks for more than plain weights need; `names` are the objects it asks for, if it is about these."""

    def __init__(self, reason: str, *, names: frozenset[str] = frozenset()) -> None:
        super().__init__(reason)
        self.names = names


class Storage(NamedTuple):
    """A block of numbers that tensors lie in."""

    key: str
    num_elements: int
    element_bytes: int

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return self.num_elements * self.element_bytes


class Name(NamedTuple):
    """An object that is looked up in a module."""

    text: str


class Made(NamedTuple):
    """What a call would make, by kind."""

    kind: str


MAPPING, TENSOR, IGNORED, OTHER = map(Made, ("mapping", "tensor", "ignored", "other"))


@dataclass
class PickleMachine:
    """Follows the instructions of one pickle."""

    ignored: frozenset[str]
    """Names that may be called with anything: they stand for inert stand-ins."""
    storages: dict[str, Storage] = field(default_factory=dict[str, Storage])
    """By key: those that tensors lie in, after `run`."""
    _stack: list[object] = field(default_factory=list[object])
    _marks: list[list[object]] = field(default_factory=list[list[object]])
    _memo: dict[int, object] = field(default_factory=dict[int, object])

    def run(self, file: io.BytesIO | mmap.mmap) -> object:
        """Follow the instructions to the end; what they leave.

        Raises:
            UnsafePickleError: they do more than plain weights need.
            ValueError: they are damaged.
        """
        readable = cast("IO[bytes]", file)  # a map has of a file's methods those that are called
        for number, (instruction, argument, _) in enumerate(pickletools.genops(readable)):
            if number >= MAX_INSTRUCTIONS:
                raise UnsafePickleError(f"it has more than {MAX_INSTRUCTIONS} instructions")
            try:
                self._follow(instruction.name, argument)
            except (IndexError, KeyError) as error:
                raise ValueError("its instructions do not fit together") from error
        return self._stack[-1] if self._stack else None

    def _follow(self, name: str, argument: object) -> None:
        match name:
            case "PROTO" | "STOP":
                pass
            case "MARK":
                self._marks.append(self._stack)
                self._stack = []
            case "BINPUT" | "LONG_BINPUT":
                assert isinstance(argument, int)
                self._memo[argument] = self._stack[-1]
            case "BINGET" | "LONG_BINGET":
                assert isinstance(argument, int)
                self._stack.append(self._memo[argument])
            case "APPEND" | "APPENDS":
                self._append(self._since_mark() if name == "APPENDS" else self._last(1))
            case "SETITEM" | "SETITEMS":
                self._set_items(self._since_mark() if name == "SETITEMS" else self._last(2))
            case "BUILD":
                self._last(1)
                self._check_target(MAPPING, IGNORED)
            case _:
                value = self._value(name, argument)  # which may put another stack in place
                self._stack.append(value)

    def _value(self, name: str, argument: object) -> object:
        if name in CONSTANTS:
            return CONSTANTS[name]
        if name in LITERALS:
            return argument
        match name:
            case "EMPTY_LIST":
                return []
            case "EMPTY_DICT":
                return MAPPING
            case "TUPLE":
                return tuple(self._since_mark())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                return tuple(self._last(int(name[-1])))
            case "GLOBAL":
                return self._name(str(argument))
            case "REDUCE" | "NEWOBJ":
                return _called(*self._last(2), ignored=self.ignored)
            case "BINPERSID":
                return self._storage(*self._last(1))
            case _:
                raise UnsafePickleError(f"it uses the instruction {name}, which plain weights do not need")

    def _last(self, count: int) -> list[object]:
        if len(self._stack) < count:
            raise IndexError
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _since_mark(self) -> list[object]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _name(self, argument: str) -> Name:
        text = argument.replace(" ", ".", 1).replace("__builtin__.", "builtins.", 1)
        if text not in CALLABLE | STORAGES | self.ignored and not DTYPE.fullmatch(text):
            raise UnsafePickleError(f"it asks for {text}", names=frozenset({text}))
        return Name(text)

    def _append(self, items: list[object]) -> None:
        if isinstance(target := self._stack[-1], list):
            target.extend(items)
        else:
            self._check_target(IGNORED)

    def _set_items(self, items: list[object]) -> None:
        if not all(_is_plain_key(key) for key in items[::2]):
            raise UnsafePickleError("it has a key that is neither text nor number")
        self._check_target(MAPPING, IGNORED)

    def _check_target(self, *allowed: Made) -> None:
        if self._stack[-1] not in allowed:
            raise UnsafePickleError("it changes something that plain weights do not change")

    def _storage(self, identity: object) -> Storage:
        match identity:
            case ("storage", Name(text), str(key), str(), int(num), *views) if (
                text in STORAGES and num >= 0 and views in ([], [None])
            ):
                storage = Storage(key, num, ELEMENT_BYTES[text.removeprefix("torch.")])
            case _:
                raise UnsafePickleError("it refers to something that is no plain storage")
        if self.storages.setdefault(key, storage) != storage:
            raise UnsafePickleError(f"it states two sizes of storage {key!r}")
        return storage


def _called(function: object, arguments: object, *, ignored: frozenset[str]) -> object:
    """What a call would make."""
    match function, arguments:
        case Name(text), tuple() if text in ignored:
            return IGNORED
        case Name(text), tuple() if text in MAPPINGS and _are_pairs(arguments):
            return MAPPING
        case Name(text), tuple() if text in REBUILDS and _lies_inside(arguments):
            return TENSOR
        case Name(text), (Made("tensor"), *_) if text == PARAMETER:
            return TENSOR
        case Name("_codecs.encode"), (str(), "latin1"):
            return OTHER
        case Name("builtins.set"), (list(values),) if all(map(_is_plain_key, values)):
            return OTHER
        case Name("torch.Size"), (tuple(sizes),) if _are_sizes(sizes):
            return sizes
        case Name("torch.device"), (str(),) | (str(), int()):
            return OTHER
        case Name(text), _:
            raise UnsafePickleError(f"it calls {text} in a way that plain weights do not need")
        case _:
            raise UnsafePickleError("it calls something that is no function")


def _is_plain_key(key: object) -> bool:
    return key is None or isinstance(key, (str, int, float))


def _are_pairs(arguments: tuple[object, ...]) -> bool:
    """No arguments, a mapping, or a list of pairs: how Python 2 wrote ordered mappings."""
    match arguments:
        case () | (Made("mapping"),):
            return True
        case (list(pairs),):
            return all(isinstance(pair, (list, tuple)) and len(pair) == 2 and _is_plain_key(pair[0]) for pair in pairs)
        case _:
            return False


def _are_sizes(values: tuple[object, ...]) -> bool:
    return len(values) <= MAX_DIMENSIONS and all(type(value) is int and value >= 0 for value in values)


def _lies_inside(arguments: tuple[object, ...]) -> bool:
    """Whether a tensor's every element lies in its storage."""
    match arguments:
        case (Storage(_, num_elements, _), int(offset), tuple(sizes), tuple(strides), *_) if (
            offset >= 0 and len(sizes) == len(strides) and _are_sizes(sizes) and _are_sizes(strides)
        ):
            last = offset + sum((length - 1) * step for length, step in zip(sizes, strides, strict=True))
            return math.prod(sizes) == 0 or last < num_elements
        case _:
            return False
