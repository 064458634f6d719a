"""Stage prepare: images from a source into the on-disk format of all later stages."""

from __future__ import annotations

import sys
from pathlib import Path

from compress.data import DataSettings
from compress.data.manifest import Manifest
from compress.data.prepare import prepare
from compress.settings import Settings
from pipelines.layout import Layout
from pipelines.params import load_params
from pipelines.progress import Counter
from pipelines.tracking import ensure_store

MOST_SHOWN = 5


class PrepareParams(Settings):
    """Sections that this stage reads."""

    data: DataSettings


def run(root: Path) -> None:
    """Prepare the data set and say what became of it; make the tracker's embedded store while nobody else does."""
    layout = Layout(root)
    settings = load_params(PrepareParams, layout.params).data
    with Counter("prepare") as counter:
        manifest = prepare(settings, layout.prepared, report=counter.show)
    _tell(manifest)
    ensure_store(root)


def _tell(manifest: Manifest) -> None:
    sizes = ", ".join(f"{split} {info.num_images}" for split, info in manifest.splits.items())
    print(f"prepare: {len(manifest.classes)} classes, {manifest.height}x{manifest.width} px, {sizes}")
    for skipped in manifest.skipped[:MOST_SHOWN]:
        print(f"prepare: skipped {skipped.file}: {skipped.reason}", file=sys.stderr)
    if len(manifest.skipped) > MOST_SHOWN:
        print(f"prepare: and {len(manifest.skipped) - MOST_SHOWN} more, listed in manifest.json", file=sys.stderr)
    num_shared = manifest.duplicates.num_groups_across_splits
    if num_shared:
        print(
            f"prepare: {num_shared} images stand in more than one split of the source; "
            "data.duplicates: drop_from_train takes them out of train",
            file=sys.stderr,
        )
