"""Progress of a pipeline: what runs, how far it is, and the time that is left for all stages."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from samora_monai.handlers.progress import duration
from samora_monai.pipeline.bundle_process import last_lines
from samora_monai.pipeline.stages import Stage

STARTUP = 10.0  # seconds of a process before its first step, about
_EPOCH = re.compile(r"^(?P<text>epoch \d+/\d+)\s+(?P<percent>[\d.]+)%.*ETA (?P<h>\d+):(?P<m>\d\d):(?P<s>\d\d)")
_SCAN = re.compile(r"^\[(?P<done>\d+)/(?P<all>\d+)\]")


@dataclass(frozen=True)
class Position:
    """How far a run is, by its log.

    Args:
        text: its last progress line, shortened; empty before the first one.
        fraction: 0 to 1.
        seconds_left: for this run alone; None if unknown.
    """

    text: str = ""
    fraction: float = 0.0
    seconds_left: float | None = None


def position(log: Path, elapsed: float) -> Position:
    """Read how far a run is from the end of its log; `elapsed` seconds have passed since it started."""
    for line in reversed(last_lines(log)):
        if line.startswith("$ "):  # the command: nothing before is of this run
            break
        if epoch := _EPOCH.match(line):
            left = 3600 * int(epoch["h"]) + 60 * int(epoch["m"]) + int(epoch["s"])
            left -= round(time.time() - log.stat().st_mtime)
            text = re.sub(r"\s+lr \S+|\s+ETA.*", "", line)
            return Position(re.sub(r"\s+", " ", text), float(epoch["percent"]) / 100, max(left, 0))
        if (scan := _SCAN.match(line)) and int(scan["done"]):
            fraction = int(scan["done"]) / int(scan["all"])
            return Position(f"scan {scan['done']} of {scan['all']}", fraction, elapsed * (1 / fraction - 1))
    return Position()


def seconds_left(
    todo: Sequence[Stage], measured: Mapping[str, float], running: Mapping[str, Position], jobs: int
) -> float | None:
    """Estimate the time until all stages are finished; None before the first measurement.

    Args:
        todo: the stages that run or wait.
        measured: seconds per unit of work of stages that are finished.
        running: positions of those that run, by name.
        jobs: number of runs at a time.
    """
    rates = list(measured.values())
    for stage in todo:
        at = running.get(stage.name)
        if at is not None and at.seconds_left and at.fraction < 1 and stage.work:
            rates.append(at.seconds_left / (1 - at.fraction) / stage.work)
    if not rates:
        return None
    rate = sum(rates) / len(rates)
    own = {}
    for stage in todo:
        at = running.get(stage.name, Position())
        own[stage.name] = STARTUP + stage.work * rate if at.seconds_left is None else at.seconds_left
    return max(sum(own.values()) / jobs, max(longest_path(todo, own).values(), default=0.0))


def longest_path(stages: Sequence[Stage], own: Mapping[str, float]) -> dict[str, float]:
    """For each stage its own value and that of the longest path of stages after it; `stages` are in their order."""
    path: dict[str, float] = {}
    for stage in reversed(stages):
        after = [path[other.name] for other in stages if stage.name in other.needs]
        path[stage.name] = own[stage.name] + max(after, default=0.0)
    return path


def progress_line(
    numbers: Collection[int], total: int, running: Mapping[str, Position], left: float | None, width: int
) -> str:
    """`stage 3 of 9  patch_expert: epoch 2/4 45.0% loss 0.31  left about 00:04:10`, at most `width` characters.

    Args:
        numbers: of the stages that run.
        total: number of stages.
    """
    which = " and ".join(map(str, sorted(numbers)))
    what = "  ".join(f"{name}: {at.text or 'runs'}" for name, at in running.items())
    end = f"  left about {duration(left)}" if left is not None else ""
    start = f"stage {which} of {total}  "
    room = max(width - len(start) - len(end), 0)
    return (start + (what if len(what) <= room else what[: max(room - 3, 0)] + "...") + end)[:width]


class Screen:
    """Lines for people: on a terminal with a progress line below them that changes, in a file without it."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self.shown = False

    def say(self, line: str = "") -> None:
        """Print a line that stays."""
        self.clear()
        print(line, flush=True)

    def show(self, line: str) -> None:
        """Replace the progress line."""
        if self.live:
            print(f"\r\x1b[K{line}", end="", flush=True)
            self.shown = True

    def clear(self) -> None:
        """Remove the progress line."""
        if self.shown:
            print("\r\x1b[K", end="", flush=True)
            self.shown = False

    @property
    def width(self) -> int:
        """Characters of a line."""
        return shutil.get_terminal_size().columns - 1
