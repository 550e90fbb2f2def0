"""Last stage of every domain: finished files get their final names, `dataset.json` last of all."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from data_prep.common.files import link_or_copy, translate_os_errors
from data_prep.common.manifest import write_manifest


def publish(
    out: Path, files: Mapping[str, Path], manifest: dict[str, Any], payload: Collection[str], scratch: Path
) -> None:
    """Give all files their final names and remove the scratch folder.

    A crash in between is harmless: without `dataset.json` the directory counts as unfinished, and the next run
    finds all work done and repeats this step.

    Args:
        out: output directory.
        files: path inside it -> finished file.
        manifest: content of `dataset.json`.
        payload: names at the top of `out` that belong to a preparation; left-overs of an interrupted run are removed.
        scratch: folder of intermediate files.
    """
    with translate_os_errors(out):
        for name in sorted(payload):
            if (out / name).is_dir():
                shutil.rmtree(out / name)
            else:
                (out / name).unlink(missing_ok=True)
        for name, source in files.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(source, out / name)
        write_manifest(out, manifest)
        shutil.rmtree(scratch, ignore_errors=True)
