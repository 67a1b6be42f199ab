"""Runs of the bundles, each in a process of its own, with its log, its cost and its last line if it fails."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samora_monai.bundles import bundle_path
from samora_monai.errors import InputError
from samora_monai.report.provenance import quoted

_TRUSTED = "ignore:parsing config_file:UserWarning"
_GRACE = 10.0  # seconds for a process to end itself
_TAIL = 1 << 16  # bytes at the end of a log that hold its last lines, or a traceback of MONAI
_EXCEPTION = re.compile(r"[A-Za-z_.]+(Error|Exception): .")
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


class FailedRun(InputError):
    """A process ended with an error; `reason` is the last line of its log, or the signal that ended it."""

    def __init__(self, log: Path, code: int) -> None:
        self.log = log
        self.reason = error_line(log)
        text = f"a run ended with code {code}, see {log}; its last line: {self.reason}"
        if code < 0:
            self.reason = f"signal {-code} ended it" + (
                ", perhaps for want of memory" if code == -signal.SIGKILL else ""
            )
            text = f"a run failed: {self.reason}, see {log}"
        super().__init__(text)


@dataclass(frozen=True)
class Usage:
    """Cost of a process: wall time and processor time in seconds, peak memory in MB."""

    seconds: float
    cpu_seconds: float
    memory_mb: float

    def __str__(self) -> str:
        return f"{self.seconds:.0f} s, {self.cpu_seconds:.0f} core s, {self.memory_mb:.0f} MB"


def copy_bundle(name: str, folder: Path) -> Path:
    """Copy a bundle without trained models and results to `folder`, which must not exist, and return that.

    A copy that is interrupted leaves no `folder` behind.
    """
    if folder.exists():
        raise FileExistsError(f"'{folder}' exists")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(bundle_path(name), unfinished, ignore=shutil.ignore_patterns("eval", "models"))
    return unfinished.rename(folder)


def remove_bundle(folder: Path) -> None:
    """Remove a copy of a bundle; an interruption leaves no part of it in `folder`."""
    removed = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(removed, ignore_errors=True)
    folder.rename(removed)
    shutil.rmtree(removed)


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
    config_file = files[0] if len(files) == 1 else str(files)
    words = [sys.executable, "-m", "monai.bundle", "run", workflow, "--config_file", config_file]
    for key, value in {"bundle_root": bundle, **settings}.items():
        words += [f"--{key}", str(value)]
    return words


def shown(command: Sequence[str]) -> str:
    """A command as a person can paste it into a shell; the interpreter is `python` where that is the same one."""
    python, *arguments = command
    found = shutil.which("python")
    same = found is not None and os.path.abspath(found) == os.path.abspath(python)
    return " ".join(["python" if same else quoted(python), *map(quoted, arguments)])


def environment(threads: int | None, python_path: Path | None = None, trusted: bool = True) -> dict[str, str]:
    """Environment variables of a run.

    Args:
        threads: number of threads; None leaves it to torch.
        python_path: a folder of modules that are not installed.
        trusted: whether the configs are those of this package; without MONAI's warning that configs can run any code.
    """
    # threads that wait for a busy core sleep instead of spinning: several times faster on a machine with other load
    variables = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    if trusted:  # MONAI warns before it reads a config; those of a user come later and take precedence
        warnings = filter(None, [_TRUSTED, os.environ.get("PYTHONWARNINGS")])
        variables["PYTHONWARNINGS"] = ",".join(warnings)
    if threads is not None:
        variables["OMP_NUM_THREADS"] = str(threads)
    if python_path is not None:
        variables["PYTHONPATH"] = os.pathsep.join([str(python_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    return variables


class Run:
    """A running process that appends its output to a log.

    Args:
        command: words of the command line.
        log: file that the command and its output are appended to.
        threads, python_path: see `environment`.
        lock: file descriptor that the process keeps open. With it the process is the first of a group of its own, which
            a Ctrl-C in the terminal does not reach, and on Linux ends when the thread that started it ends.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        threads: int | None,
        python_path: Path | None = None,
        lock: int | None = None,
    ) -> None:
        self.log = log
        self.start = time.monotonic()
        self.own_group = lock is not None
        settings: dict[str, Any] = {"env": environment(threads, python_path)}
        if lock is not None:
            settings |= {"pass_fds": [lock], "start_new_session": True, "preexec_fn": _PREPARE}
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as file:
            print("$", shown(command), file=file, flush=True)
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, **settings)

    def poll(self, wait: bool = False) -> Usage | None:
        """Return the cost of the process if it has ended, else None; with `wait` wait for its end.

        Raises:
            FailedRun: it has ended with an error.
        """
        # the usage of this process alone, whatever runs beside it
        pid, status, usage = os.wait4(self.process.pid, 0 if wait else os.WNOHANG)
        if not pid:
            return None
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if self.process.returncode:
            raise FailedRun(self.log, self.process.returncode)
        unit = 1e6 if sys.platform == "darwin" else 1e3  # ru_maxrss is in bytes on macOS, in kB elsewhere
        return Usage(time.monotonic() - self.start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit)

    def end(self) -> None:
        """End the process and those that it has started; kill them if they do not end within some seconds."""
        _end(self.process, self.own_group)


def run_process(command: Sequence[str], log: Path, threads: int | None, python_path: Path | None = None) -> Usage:
    """Run `command`, append its output to `log`, and return its cost; see `Run` for the arguments.

    Raises:
        FailedRun: the process ended with an error.
    """
    usage = Run(command, log, threads, python_path).poll(wait=True)
    assert usage is not None
    return usage


def run_visibly(command: Sequence[str], trusted: bool = True) -> int:
    """Run `command` with its output on the terminal, and return its exit code; a Ctrl-C ends it without a traceback.

    `trusted`: see `environment`.
    """
    variables = environment(None, trusted=trusted)
    process = subprocess.Popen(command, env=variables, start_new_session=True, preexec_fn=_PREPARE)
    try:
        return process.wait()
    finally:
        if process.returncode is None:
            _end(process, own_group=True)


def last_lines(log: Path) -> list[str]:
    """The last lines of a log that are not empty; none if it cannot be read."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def error_line(log: Path) -> str:
    """The line of a log that says why its process failed.

    A user's mistake in one line, or else the first exception, which MONAI wraps in others, or else the last line.
    """
    lines = last_lines(log)
    start = max((number for number, line in enumerate(lines) if line.startswith("$ ")), default=-1) + 1  # of this run
    mistakes = [line for line in lines[start:] if line.startswith("error: ")]
    exceptions = [line for line in lines[start:] if _EXCEPTION.match(line)]
    return (mistakes[-1:] or exceptions[:1] or lines[-1:] or ["none"])[0].removeprefix("error: ")


def _end(process: subprocess.Popen[bytes], own_group: bool) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign) if own_group else process.send_signal(sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)


def _end_with_parent() -> None:
    # in the new process: a pipeline that is killed leaves no training behind that writes into its folder
    assert _LIBC is not None
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


_PREPARE = _end_with_parent if _LIBC is not None else None
