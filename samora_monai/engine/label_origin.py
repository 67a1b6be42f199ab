"""What a predicted label was made of, as a short text: equal texts, equal labels.

It stands in the header of every label file, so that a run that is started again knows which labels it need not make.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samora_monai import __version__
from samora_monai.engine.provenance import file_sha256


class LabelOrigin:
    """Model file, settings, version of this package, and the scan by its size and time of change.

    Args:
        checkpoint: the model file; all of its bytes count.
        settings: everything else that changes a label, as JSON knows it.
    """

    def __init__(self, checkpoint: str | os.PathLike[str], settings: Sequence[Any]) -> None:
        self.model = json.dumps([__version__, file_sha256(checkpoint), settings], sort_keys=True)

    def of(self, scan: str | os.PathLike[str]) -> str:
        """The text for a volume file or the folder of a DICOM series: 53 characters."""
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in _files(Path(scan))]
        return f"samora_monai:{hashlib.sha1(json.dumps([self.model, stats]).encode()).hexdigest()}"


def _files(scan: Path) -> list[Path]:
    if scan.is_dir():
        return sorted(file for file in scan.iterdir() if file.is_file())
    if scan.suffix.lower() == ".mhd":  # the voxels are in a file beside it
        return sorted(file for file in scan.parent.iterdir() if file.stem == scan.stem and file.is_file())
    return [scan]
