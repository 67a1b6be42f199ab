"""The provenance of a predicted label as a short text: equal texts mean equal labels.

It is stored in the header of every label file, so that an interrupted run can resume without the finished labels.
"""

from __future__ import annotations

import hashlib
import json
import os

from samora_monai import __version__
from samora_monai.checkpoints.files import file_sha256
from samora_monai.checkpoints.model_settings import ModelSettings
from samora_monai.data.scans import fingerprint
from samora_monai.settings import flag


class LabelProvenance:
    """Hash of the model file, its settings, the version of this package, and the size and time of change of a scan.

    Args:
        checkpoint: the model file; all of its bytes count.
        model: settings of the model, as this run uses them.
        amp: whether the network runs under autocast.
    """

    def __init__(self, checkpoint: str | os.PathLike[str], model: ModelSettings, amp: bool | str) -> None:
        run = [__version__, file_sha256(checkpoint), model.as_dict(), flag(amp, "amp")]
        self.run = json.dumps(run, sort_keys=True)

    def of(self, scan: str | os.PathLike[str]) -> str:
        """The text for a volume file or the folder of a DICOM series: 53 characters."""
        return f"samora_monai:{hashlib.sha1(json.dumps([self.run, fingerprint(scan)]).encode()).hexdigest()}"
