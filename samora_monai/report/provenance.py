"""The provenance of a result, as needed to reproduce it: data, weights, settings, command, versions."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import ignite.distributed as idist
import monai
import numpy as np
import torch

from samora_monai import __version__
from samora_monai.checkpoints.files import file_sha256
from samora_monai.checkpoints.model_settings import ModelSettings
from samora_monai.data.datalist import Cases

# above the results of scans that a model has seen
TRAINING_SCANS = "These are the scans that the model was trained on. On other scans it will do worse."
DATE = "%Y-%m-%d %H:%M:%S %z"


@dataclass(frozen=True)
class Provenance:
    """The inputs of an evaluation.

    Args:
        cases: the scans; those of `validation` are evaluated, or those of `training` if there are none.
        checkpoint: the weight file.
        model: settings of the model, as this run uses them.
        device: the device of the network.
    """

    cases: Cases
    checkpoint: str | os.PathLike[str]
    model: ModelSettings
    device: torch.device | str

    def facts(self) -> dict[str, str]:
        """Return name and value of each fact as text; called when the run starts, as files may change later."""
        file = Path(self.checkpoint)
        device = torch.device(self.device)
        hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        count = idist.get_world_size()
        held_out = self.cases.validation
        scans = f"{len(held_out)} (validation)" if held_out else f"{len(self.cases.training)} (training)"
        return {
            "Evaluated": time.strftime(DATE),
            "Data set": self.cases.source,
            "Scans": scans,
            **({} if held_out else {"Note": TRAINING_SCANS}),
            "Checkpoint": os.path.abspath(file),
            "Checkpoint written": time.strftime(DATE, time.localtime(file.stat().st_mtime)),
            "Checkpoint SHA-256": file_sha256(file),
            "Command": command_line(),
            "Device": f"{device} ({hardware}), {count} {'process' if count == 1 else 'processes'}",
            "System": platform.platform(),
            "Versions": f"samora_monai {__version__}, monai {monai.__version__}, torch {torch.__version__}, "
            f"numpy {np.__version__}, Python {platform.python_version()}",
        }


def command_line() -> str:
    """Return the command that started this process, quoted for a shell; MONAI's as `python -m monai.bundle`."""
    program, *arguments = sys.argv
    is_bundle = Path(program).parts[-3:] == ("monai", "bundle", "__main__.py")
    words = ["python", "-m", "monai.bundle"] if is_bundle else [program]
    return " ".join(quoted(word) for word in [*words, *arguments])


def quoted(word: str) -> str:
    """Return a word of a command line, quoted for a shell."""
    # shlex would escape each quote of "['a','b']"
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)
