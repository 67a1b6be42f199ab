"""Atomic writes: a file is complete or unchanged, whenever the program stops."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterator, Set
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a hidden path beside `path`, with the same suffix, and rename it to `path` if the body succeeds.

    Makes the folder if needed; removes the hidden file if the body fails.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{uuid.uuid4().hex[:12]}_{path.name}")  # other processes may be writing `path` too
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def remove_unfinished(paths: Set[Path]) -> None:
    """Remove the hidden files that killed programs left for `paths`, and no others."""
    for folder in {path.parent for path in paths}:
        for file in folder.iterdir() if folder.is_dir() else ():
            name = re.fullmatch(r"\.[0-9a-f]+_(.+)", file.name)
            if name and folder / name[1] in paths:
                file.unlink(missing_ok=True)
