"""Runs of the real bundles, each in a process of its own: time, memory, and the end of the log if one fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


class FailedRun(Exception):
    """A process ended with an error; its message is the last thing that it said."""


@dataclass(frozen=True)
class Usage:
    """What a process took: wall time, processor time (both in seconds), peak memory in MB."""

    seconds: float
    cpu_seconds: float
    memory_mb: float

    def __str__(self) -> str:
        return f"{self.seconds:.0f} s, {self.cpu_seconds:.0f} core s, {self.memory_mb:.0f} MB"


def copy_bundle(name: str, folder: Path) -> Path:
    """A copy of a bundle without anything that was trained in it."""
    return Path(shutil.copytree(ROOT / "bundles" / name, folder, ignore=shutil.ignore_patterns("eval", "models")))


def bundle_command(
    bundle: Path, workflow: str, configs: Sequence[Path | str], settings: Mapping[str, Any]
) -> list[str]:
    """``python -m monai.bundle run ...``.

    Args:
        bundle: a copy of a bundle.
        configs: names of its configs, or paths of others.
        settings: what is given on the command line; a `None` is written as Python has it.
    """
    files = [str(bundle / "configs" / config) for config in configs]  # a path that is absolute stays
    words = [sys.executable, "-m", "monai.bundle", "run", workflow, "--config_file", str(files)]
    for key, value in {"bundle_root": bundle, **settings}.items():
        words += [f"--{key}", str(value)]
    return words


def run_process(command: Sequence[str], log: Path, threads: int) -> Usage:
    """Runs `command`, which adds what it says to `log`.

    Raises:
        FailedRun: it ended with an error.
    """
    # threads that wait for a busy core sleep instead of spinning
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "OMP_NUM_THREADS": str(threads)}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]  # overlays name classes of this folder
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with open(log, "a", encoding="utf-8") as file:
        print("$", *command, file=file, flush=True)
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)  # of this process alone: others may run beside it
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1]
        raise FailedRun(f"a run ended with code {process.returncode}, see {log}; it said last: {said}")
    unit = 1e6 if sys.platform == "darwin" else 1e3  # ru_maxrss is in bytes there, in kB elsewhere
    return Usage(time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit)
