"""Which class and which split an image belongs to, read from the folders it lies in.

Understood layouts, each possibly inside wrapping folders (`cifar100/train/apple/x.png` in an archive):

    <class>/…/<image>                   no splits: they are carved out later
    train/<class>/…/<image>             with val, valid, validation and test, testing; train and training;
    test/<class>/…/<image>              upper or lower case

Classes are the folder names in code point order, the order that torchvision's ImageFolder gives them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from compress.data.decoding import image_extensions
from compress.data.file_tree import FileTree
from compress.data.source import SourceImage, SplitName
from compress.errors import DataError

_SPLIT_FOLDERS: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_NUM_NAMED = 5


@dataclass(frozen=True)
class ClassFolders:
    """A listing sorted into classes."""

    classes: tuple[str, ...]
    images: tuple[SourceImage, ...]
    num_ignored_files: int
    """Hidden files and files without an image's ending."""


def sort_into_classes(tree: FileTree) -> ClassFolders:
    """Give each image of a tree its class, and its split where the folders say one.

    Raises:
        DataError: no images, fewer than two classes, images outside class folders, an empty class folder, or splits
            with different classes. The message does not name the root; the caller knows it.
    """
    endings = image_extensions()
    images = [name for name in tree.files if PurePosixPath(name).suffix.lower() in endings]
    if not images:
        raise DataError(f"no images: none of {len(tree.files)} files has an ending such as .png or .jpg")
    level = _unwrap(images, tree.folders)
    splits = _split_folders(level)
    if splits:
        images = [name for name in images if level.top(name) in splits]
        parts: dict[SplitName | None, _Level] = {
            split: level.below(folder, images=images, folders=tree.folders) for folder, split in splits.items()
        }
    else:
        parts = {None: level}
    classes = _common_classes(parts)
    places = {name: place for place, name in enumerate(classes)}
    found = sorted(
        SourceImage(name, places[part.top(name)], split) for split, part in parts.items() for name in part.images
    )
    num_ignored = tree.num_hidden_files + len(tree.files) - len(found)
    return ClassFolders(classes, tuple(found), num_ignored)


@dataclass(frozen=True)
class _Level:
    """One folder: what lies in it and below it."""

    prefix: str
    """Its path with a closing slash; empty for the root."""
    images: tuple[str, ...]
    """Every image below it."""
    folders: tuple[str, ...]
    """Names of the folders directly in it."""

    def top(self, name: str) -> str:
        """The first part of a path below this folder."""
        return name[len(self.prefix) :].split("/", 1)[0]

    def direct_images(self, folder: str | None = None) -> list[str]:
        """Images directly in this folder, or directly in one of its folders."""
        prefix = self.prefix if folder is None else f"{self.prefix}{folder}/"
        return [name for name in self.images if name.startswith(prefix) and "/" not in name[len(prefix) :]]

    def below(self, folder: str, *, images: Iterable[str], folders: Iterable[str]) -> _Level:
        """The level one folder down."""
        return _level(f"{self.prefix}{folder}/", images=images, folders=folders)


def _level(prefix: str, *, images: Iterable[str], folders: Iterable[str]) -> _Level:
    names = [name[len(prefix) :] for name in folders if name.startswith(prefix)]
    return _Level(
        prefix,
        tuple(name for name in images if name.startswith(prefix)),
        tuple(name for name in names if name and "/" not in name),
    )


def _unwrap(images: Iterable[str], folders: Iterable[str]) -> _Level:
    level = _level("", images=images, folders=folders)
    while len(level.folders) == 1 and not level.direct_images() and not level.direct_images(level.folders[0]):
        level = level.below(level.folders[0], images=images, folders=folders)
    return level


def _split_folders(level: _Level) -> dict[str, SplitName]:
    """Folders of this level that are splits; empty when its folders are classes.

    A split holds class folders, a class holds images: that tells a class named `train` from a split.
    """
    with_images = {level.top(name) for name in level.images}
    named: dict[str, SplitName] = {
        folder: _SPLIT_FOLDERS[folder.lower()] for folder in level.folders if folder.lower() in _SPLIT_FOLDERS
    }
    flat = {folder: images for folder in named if (images := level.direct_images(folder))}
    nested = set(named) & with_images - set(flat)
    is_flat_split = len(flat) > 1 and "train" in {named[folder] for folder in flat}
    if not nested and not is_flat_split:
        return {}
    if flat:
        folder, images = next(iter(flat.items()))
        raise DataError(
            f"{len(images)} images such as {images[0]} lie directly in {level.prefix}{folder}, so they have no class: "
            f"sort them into {folder}/<class>/ or move {folder} away"
        )
    empty = sorted(set(named) - nested)
    if empty:
        raise DataError(f"the split folder {level.prefix}{empty[0]} has no images; fill it or delete it")
    loose = {level.top(name) for name in level.direct_images()}
    _check_split_folders(named, others=sorted((with_images | loose) - set(named)))
    return named


def _check_split_folders(splits: dict[str, SplitName], *, others: list[str]) -> None:
    if others:
        raise DataError(
            f"split folders ({_listed(splits)}) stand beside others with images ({_listed(others)}): "
            "move those away, or rename the first if they are classes"
        )
    if len(set(splits.values())) < len(splits):
        raise DataError(f"two folders are the same split: {_listed(splits)}; keep one of them")
    if "train" not in splits.values():
        raise DataError(f"there is {_listed(splits)} but no train folder; add train/<class>/<image>")


def _common_classes(parts: dict[SplitName | None, _Level]) -> tuple[str, ...]:
    classes = {split: _classes(level) for split, level in parts.items()}
    expected = classes["train" if "train" in classes else None]
    for split, found in classes.items():
        missing, added = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
        if missing or added:
            sides = [f"lacks {_listed(missing)}"] * bool(missing) + [f"has {_listed(added)} in addition"] * bool(added)
            raise DataError(
                f"the {split} split has other classes than train: it {' and '.join(sides)}; "
                "give every split the same class folders"
            )
    if len(expected) < 2:
        raise DataError(f"only one class: {_listed(expected)}; a classifier needs at least two class folders")
    return expected


def _classes(level: _Level) -> tuple[str, ...]:
    loose = level.direct_images()
    if loose:
        raise DataError(
            f"{len(loose)} images such as {loose[0]} lie in no class folder; "
            "put each image into a folder named for its class"
        )
    empty = sorted(set(level.folders) - {level.top(name) for name in level.images})
    if empty:
        raise DataError(
            f"the class folder {level.prefix}{empty[0]} has no images"
            + (f" (and {len(empty) - 1} others)" if len(empty) > 1 else "")
            + "; fill it or delete it"
        )
    return tuple(sorted(level.folders))


def _listed(names: Iterable[str]) -> str:
    everything = list(names)
    rest = len(everything) - _NUM_NAMED
    return ", ".join(everything[:_NUM_NAMED]) + (f" and {rest} more" if rest > 0 else "")
