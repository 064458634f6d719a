"""Which images occur more than once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice

from compress.data.manifest import Copy, CopyGroup, DuplicateReport
from compress.data.source import SourceImage, SplitName
from compress.data.splits import Assignment

_NUM_EXAMPLES = 100


def report_duplicates(
    images: Sequence[SourceImage],
    hashes: Sequence[bytes],
    *,
    assignment: Assignment,
    classes: Sequence[str],
    policy: str,
) -> DuplicateReport:
    """Group the images of all splits by content; `images` and `hashes` run along."""
    groups = _groups(hashes, assignment)
    across_splits = {key for key, copies in groups.items() if len({split for split, _ in copies}) > 1}
    across_classes = {key for key, copies in groups.items() if len({images[place].label for _, place in copies}) > 1}
    notable = (key for key in groups if key in across_splits or key in across_classes)
    return DuplicateReport.model_validate(
        {
            "policy": policy,
            "num_groups": len(groups),
            "num_groups_across_splits": len(across_splits),
            "num_groups_across_classes": len(across_classes),
            "num_dropped_from_train": len(assignment.dropped),
            "examples": tuple(
                CopyGroup(
                    sha256=key.hex(),
                    copies=tuple(
                        Copy(file=images[place].file, split=split, class_name=classes[images[place].label])
                        for split, place in groups[key]
                    ),
                )
                for key in islice(notable, _NUM_EXAMPLES)
            ),
        }
    )


def _groups(hashes: Sequence[bytes], assignment: Assignment) -> Mapping[bytes, list[tuple[SplitName, int]]]:
    groups: dict[bytes, list[tuple[SplitName, int]]] = defaultdict(list)
    for split, places in assignment.members.items():
        for place in places:
            groups[hashes[place]].append((split, place))
    return {key: copies for key, copies in groups.items() if len(copies) > 1}
