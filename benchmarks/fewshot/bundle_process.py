"""Runs of the bundles, each in a process of its own, with its time, its peak memory and its last line if it fails."""

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
    """A process ended with an error; the message holds the last line of its output."""


@dataclass(frozen=True)
class Usage:
    """Cost of a process: wall time and processor time in seconds, peak memory in MB."""

    seconds: float
    cpu_seconds: float
    memory_mb: float

    def __str__(self) -> str:
        return f"{self.seconds:.0f} s, {self.cpu_seconds:.0f} core s, {self.memory_mb:.0f} MB"


def copy_bundle(name: str, folder: Path) -> Path:
    """Copy a bundle without its trained models and results."""
    return Path(shutil.copytree(ROOT / "bundles" / name, folder, ignore=shutil.ignore_patterns("eval", "models")))


def bundle_command(
    bundle: Path, workflow: str, configs: Sequence[Path | str], settings: Mapping[str, Any]
) -> list[str]:
    """The command line `python -m monai.bundle run ...`.

    Args:
        bundle: a copy of a bundle.
        workflow: e.g. `training`.
        configs: names of the bundle's configs, or absolute paths of others.
        settings: overrides of the configs; None is passed as `None`.
    """
    files = [str(bundle / "configs" / config) for config in configs]  # joining keeps an absolute path as it is
    words = [sys.executable, "-m", "monai.bundle", "run", workflow, "--config_file", str(files)]
    for key, value in {"bundle_root": bundle, **settings}.items():
        words += [f"--{key}", str(value)]
    return words


def run_process(command: Sequence[str], log: Path, threads: int) -> Usage:
    """Run `command` and append its output to `log`.

    Raises:
        FailedRun: the process ended with an error.
    """
    # threads that wait for a busy core sleep instead of spinning
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "OMP_NUM_THREADS": str(threads)}
    # the overlays name classes of benchmarks.fewshot, which is not installed
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with open(log, "a", encoding="utf-8") as file:
        print("$", *command, file=file, flush=True)
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)  # the usage of this process alone, whatever runs beside it
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1]
        raise FailedRun(f"a run ended with code {process.returncode}, see {log}; its last line: {last}")
    unit = 1e6 if sys.platform == "darwin" else 1e3  # ru_maxrss is in bytes on macOS, in kB elsewhere
    return Usage(time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit)
