"""Files that are whole or as they were before, whenever the program is stopped."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a hidden name beside `path`, of the same suffix, to write to; it becomes `path` if the body succeeds.

    The folder is made if needed. Whatever happens, no unfinished file stays behind.
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
