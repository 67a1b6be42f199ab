"""Run the stages of a pipeline, a few at a time; finished ones are not repeated, interrupted ones are continued."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from samora_monai.checkpoints.files import read_checkpoint
from samora_monai.errors import InputError, one_line
from samora_monai.handlers.progress import duration
from samora_monai.pipeline.bundle_process import FailedRun, Run, Usage, copy_bundle, remove_bundle, shown
from samora_monai.pipeline.plan import EXPERTS, TEACHERS
from samora_monai.pipeline.progress import (
    STARTUP,
    Position,
    Screen,
    longest_path,
    position,
    progress_line,
    seconds_left,
)
from samora_monai.pipeline.record import Record, settings_hash
from samora_monai.pipeline.stages import Stage

_INTERVAL = 0.2  # seconds between two looks at the processes
_SHOW = 1.0  # seconds between two progress lines
_LEFTOVERS = 15.0  # seconds in which the processes of a killed pipeline end
_LITTLE = 20 << 20  # bytes of free space with which nothing can be written any more
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """The pipeline got a signal to end."""


@contextlib.contextmanager
def alone_in(run: Path) -> Iterator[int]:
    """Lock a folder against a second pipeline, and yield the lock for the processes that work there.

    Processes of a pipeline that was killed may hold it for some seconds.

    Raises:
        InputError: another pipeline works in the folder.
    """
    file = run / ".lock"
    with open(file, "a+b", buffering=0) as lock:  # without a buffer that a full disk leaves to be written at the end
        patience = time.monotonic() + _LEFTOVERS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                lock.seek(0)
                holder = lock.read().decode().strip()
                if _lives(holder) or time.monotonic() > patience:
                    raise InputError(
                        f"another pipeline works in '{run}' (process {holder or 'unknown'}); wait for it or end it, or "
                        "give another folder with --output"
                    ) from error
                time.sleep(_INTERVAL)
        lock.truncate(0)
        try:
            lock.write(str(os.getpid()).encode())
        except OSError as error:
            raise InputError(
                f"cannot write '{file}': {error.strerror}; free space or give another folder with --output"
            ) from error
        yield lock.fileno()


def _lives(process: str) -> bool:
    if not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


@contextlib.contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Append the signals that tell the process to end to the list that is yielded, in place of their effect.

    An exception that a handler raises while a process is started would be lost. A signal that is ignored, as by
    `nohup`, stays so.
    """
    noted: list[int] = []
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: noted.append(number))
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def records_of(stages: Sequence[Stage], run: Path) -> dict[str, Record]:
    """The record of each stage, by its name."""
    records: dict[str, Record] = {}
    hashes: dict[str, str] = {}
    for stage in stages:
        records[stage.name] = Record(run / "records" / f"{stage.name}.json", stage.made_from(hashes))
        hashes[stage.name] = settings_hash(records[stage.name].made_from)
    return records


def unfinished(stages: Sequence[Stage], records: dict[str, Record]) -> list[Stage]:
    """The stages that are to be run: teachers and experts only if an unfinished stage needs them."""
    todo: list[Stage] = []
    for stage in reversed(stages):
        wanted = stage.name not in (*TEACHERS, *EXPERTS) or any(stage.name in other.needs for other in todo)
        if wanted and not records[stage.name].is_finished(stage.results):
            todo.insert(0, stage)
    names = {stage.name for stage in todo}
    for stage in stages:  # and what is made from a stage that is made again
        if names & set(stage.needs):
            names.add(stage.name)
    return [stage for stage in stages if stage.name in names]


def run_stages(stages: Sequence[Stage], run: Path, jobs: int = 1, threads: int | None = None) -> None:
    """Run all stages that are not finished.

    Args:
        stages: each after those that it needs.
        run: folder of the pipeline; gets `records/<stage>.json` and `logs/<stage>.log`.
        jobs: number of runs at a time.
        threads: number of threads of each of them, where several run; None leaves it to torch.

    Raises:
        InputError: a stage failed, its cause and log are named; another pipeline works in the folder.
        KeyboardInterrupt: the pipeline was told to end; its processes have ended.
    """
    with alone_in(run) as lock:
        runner = _Runner(stages, run, max(jobs, 1), threads, lock)
        with noted_signals() as signals:
            try:
                runner.run(signals)
            finally:
                runner.end()


class _Runner:
    def __init__(self, stages: Sequence[Stage], run: Path, jobs: int, threads: int | None, lock: int) -> None:
        self.run_folder, self.jobs, self.threads, self.lock = run, jobs, threads, lock
        self.records = records_of(stages, run)
        self.todo = unfinished(stages, self.records)
        self.total = len(stages)
        self.numbers = {stage.name: number for number, stage in enumerate(stages, 1)}
        self.running: dict[str, Run] = {}
        self.resumed: set[str] = set()
        self.measured: dict[str, float] = {}  # seconds per unit of work
        self.screen = Screen()
        self.priority = longest_path(stages, {stage.name: stage.work for stage in stages})

    def run(self, signals: Sequence[int]) -> None:
        if finished := self.total - len(self.todo):
            self.screen.say(f"{finished} of {self.total} stages were finished earlier")
        looked = 0.0
        while self.todo:
            if signals:
                raise Stopped
            self._start_ready()
            self._collect()
            if time.monotonic() - looked > _SHOW and self.running:
                self._show()
                looked = time.monotonic()
            if self.running:
                time.sleep(_INTERVAL)
        self.screen.clear()

    def end(self) -> None:
        """End the processes that run."""
        self.screen.clear()
        for process in self.running.values():
            process.end()

    def _start_ready(self) -> None:
        waiting = {stage.name for stage in self.todo}
        ready = [s for s in self.todo if s.name not in self.running and not waiting & set(s.needs)]
        for stage in sorted(ready, key=lambda s: -self.priority[s.name]):
            if len(self.running) < self.jobs:
                try:
                    self._start(stage)
                except InputError:
                    raise
                except OSError as error:  # copytree raises a list of errors
                    first = error.args[0][0][-1] if isinstance(error, shutil.Error) else one_line(error)
                    raise self._failure(stage, first) from error

    def _start(self, stage: Stage) -> None:
        record, log = self.records[stage.name], self._log(stage)
        resume = False
        if stage.last is not None:
            epochs = epochs_done(stage.last) if record.is_started() else 0
            if epochs >= stage.settings["epochs"] and all(path.exists() for path in stage.results):
                self._finish(stage, None)  # it was killed after its last epoch
                return
            resume = epochs > 0
            if not resume:
                self._prepare(stage, record)
                log.unlink(missing_ok=True)
        record.start()
        if resume:
            self.resumed.add(stage.name)
        command = stage.command(resume)
        how = f"goes on after epoch {epochs}" if resume else "starts"
        self.screen.say(f"[{self.numbers[stage.name]}/{self.total}] {stage.name} {how}; log: {log}")
        self.screen.say(f"$ {shown(command)}")
        if stage.note:
            self.screen.say(f"{stage.name}: {stage.note}")
        # not by what runs at the moment: results depend on the number of threads, by rounding
        threads = self.threads and self.threads * (1 if stage.beside_others else self.jobs)
        self.running[stage.name] = Run(command, log, threads, lock=self.lock)

    def _prepare(self, stage: Stage, record: Record) -> None:
        """Copy the bundle of a training, in place of one that an earlier run has left."""
        if changes := record.changes():
            self.screen.say(f"{stage.name} is made again, because it was made with other {', '.join(changes)}")
        record.remove()
        if stage.folder.exists():
            if not (stage.folder / "configs" / "metadata.json").is_file():
                raise InputError(f"'{stage.folder}' is in the way, it is no bundle; move it, or give another --output")
            remove_bundle(stage.folder)
        copy_bundle(stage.bundle, stage.folder)

    def _collect(self) -> None:
        """Record the runs that have ended."""
        for stage in [stage for stage in self.todo if stage.name in self.running]:
            try:
                usage = self.running[stage.name].poll()
            except FailedRun as error:
                del self.running[stage.name]
                raise self._failure(stage, error.reason) from error
            if usage is None:
                continue
            del self.running[stage.name]
            if missing := [path for path in stage.results if not path.exists()]:
                raise self._failure(stage, f"it ended without '{missing[0]}'")
            self._finish(stage, usage)

    def _finish(self, stage: Stage, usage: Usage | None) -> None:
        facts = {} if usage is None else {"seconds": round(usage.seconds, 1), "memory_mb": round(usage.memory_mb)}
        self.records[stage.name].finish(**facts)
        self.todo.remove(stage)
        if usage is not None and stage.work and stage.name not in self.resumed:
            self.measured[stage.name] = max(usage.seconds - STARTUP, 1.0) / stage.work
        left = self._seconds_left(self._positions()) if self.todo else None
        took = "was complete" if usage is None else f"took {duration(usage.seconds)}"
        end = f", left about {duration(left)}" if left is not None else ""
        self.screen.say(f"[{self.numbers[stage.name]}/{self.total}] {stage.name} {took}{end}")

    def _failure(self, stage: Stage, reason: str) -> InputError:
        if shutil.disk_usage(self.run_folder).free < _LITTLE and "space" not in reason:
            reason = f"the disk is full ({reason})"
        return InputError(
            f"stage '{stage.name}' failed: {reason.rstrip('.')}; log: {self._log(stage)}; correct the cause and repeat "
            "the command, it goes on from there and keeps what is finished"
        )

    def _show(self) -> None:
        at = self._positions()
        numbers = [self.numbers[name] for name in self.running]
        self.screen.show(progress_line(numbers, self.total, at, self._seconds_left(at), self.screen.width))

    def _positions(self) -> dict[str, Position]:
        now = time.monotonic()
        return {name: position(process.log, now - process.start) for name, process in self.running.items()}

    def _seconds_left(self, at: Mapping[str, Position]) -> float | None:
        return seconds_left(self.todo, self.measured, at, self.jobs)

    def _log(self, stage: Stage) -> Path:
        return self.run_folder / "logs" / f"{stage.name}.log"


def epochs_done(last: Path) -> int:
    """The number of complete epochs in a last checkpoint; 0 if there is none, or none that can be read."""
    try:
        position = read_checkpoint(last)[0]["trainer"]
        return int(position["iteration"]) // int(position["epoch_length"])
    except (InputError, KeyError, TypeError, ValueError):
        return 0
