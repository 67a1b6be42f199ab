"""The provenance of a result, as needed to reproduce it: data, weights, settings, command, versions."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ignite.distributed as idist
import monai
import numpy as np
import torch

from samora_monai import __version__
from samora_monai.checkpoints.files import file_sha256
from samora_monai.checkpoints.model_settings import ModelSettings

if TYPE_CHECKING:
    from samora_monai.data.datalist import Cases


@dataclass(frozen=True)
class Provenance:
    """The inputs of an evaluation.

    Args:
        cases: the scans; those of `validation` are evaluated.
        checkpoint: the weight file.
        model: settings of the model, as this run uses them.
        device: the device of the network.
    """

    cases: Cases
    checkpoint: str | os.PathLike[str]
    model: ModelSettings
    device: torch.device | str

    def facts(self) -> dict[str, str]:
        """Name and value of each fact as text. Call it when the run starts: files may change later."""
        file = Path(self.checkpoint)
        device = torch.device(self.device)
        hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        count = idist.get_world_size()
        processes = f"{count} {'process' if count == 1 else 'processes'}"
        versions = {
            "samora_monai": __version__,
            "monai": monai.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "Python": platform.python_version(),
        }
        return {
            "Evaluated": _date(datetime.datetime.now()),
            "Data set": self.cases.source,
            "Scans": f"{len(self.cases.validation)} (validation)",
            "Checkpoint": os.path.abspath(file),
            "Checkpoint written": _date(datetime.datetime.fromtimestamp(file.stat().st_mtime)),
            "Checkpoint SHA-256": file_sha256(file),
            "Command": command_line(),
            "Device": f"{device} ({hardware}), {processes}",
            "System": platform.platform(),
            "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        }


def command_line() -> str:
    """The command that started this process, quoted for a shell; MONAI's as `python -m monai.bundle`."""
    program, *arguments = sys.argv
    path = Path(program)
    words = ["python", "-m", "monai.bundle"] if path.parts[-3:] == ("monai", "bundle", "__main__.py") else [program]
    return " ".join(_quoted(word) for word in [*words, *arguments])


def _quoted(word: str) -> str:
    # shlex would escape each quote of "['a','b']"
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def _date(date: datetime.datetime) -> str:
    return date.astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
