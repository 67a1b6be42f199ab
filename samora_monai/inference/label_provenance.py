"""The provenance of a predicted label as a short text in its file's header; equal texts mean equal labels."""

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
    """Hash of the model file, its settings, the version of this package, and the size and modification time of a scan.

    Args:
        checkpoint: the model file.
        model: settings of the model, as this run uses them.
        amp: whether the network runs under autocast.
    """

    def __init__(self, checkpoint: str | os.PathLike[str], model: ModelSettings, amp: bool | str) -> None:
        run = [__version__, file_sha256(checkpoint), model.as_dict(), flag(amp, "amp")]
        self.run = json.dumps(run, sort_keys=True)

    def of(self, scan: str | os.PathLike[str]) -> str:
        """Return the text, 53 characters, for a volume file or the folder of a DICOM series."""
        return f"samora_monai:{hashlib.sha1(json.dumps([self.run, fingerprint(scan)]).encode()).hexdigest()}"
