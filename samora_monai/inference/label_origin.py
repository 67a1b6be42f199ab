"""What a predicted label was made of, as a short text: equal texts, equal labels.

It stands in the header of every label file, so that a run that is started again knows which labels it need not make.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

from samora_monai import __version__
from samora_monai.checkpoints.files import file_sha256
from samora_monai.data.scans import fingerprint


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
        return f"samora_monai:{hashlib.sha1(json.dumps([self.model, fingerprint(scan)]).encode()).hexdigest()}"
