"""A pipeline that is killed or stopped at any time, and started again, makes the files of an undisturbed one."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from samora_monai.pipeline.run import Stopped, alone_in, run_stages
from samora_monai.pipeline.stages import Stage
from tests.pipeline.conftest import MakeStages

FORK = multiprocessing.get_context("fork")  # the process has imported everything and computed nothing


def work(stages: list[Stage], folder: Path) -> None:
    """The process of a pipeline; its exit code is 130 after a stop."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # ignored where the tests run in the background
        signal.signal(number, signal.SIG_DFL)
    try:
        run_stages(stages, folder, jobs=2, threads=1)
    except Stopped:
        os._exit(130)


def start(stages: list[Stage], folder: Path) -> BaseProcess:
    folder.mkdir(exist_ok=True)
    process = FORK.Process(target=work, args=(stages, folder))
    process.start()
    return process


def files(folder: Path) -> dict[str, bytes]:
    """The files that are made, by their names."""
    made = [*folder.rglob("*.pt"), *folder.rglob("summary.txt")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in made}


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_pipeline_equals_an_undisturbed_one(tmp_path: Path, make_stages: MakeStages, seed: int):
    undisturbed = start(make_stages(tmp_path / "undisturbed", epochs=6), tmp_path / "undisturbed")
    undisturbed.join()
    pause = random.Random(seed)
    folder = tmp_path / "killed"
    for _ in range(4):
        process = start(make_stages(folder, epochs=6, seconds=0.1), folder)
        process.join(pause.uniform(0.05, 1.2))
        process.kill()  # its own processes end with it
        process.join()
    process = start(make_stages(folder, epochs=6, seconds=0.1), folder)
    process.join()
    assert undisturbed.exitcode == process.exitcode == 0
    assert files(folder) == files(tmp_path / "undisturbed") and len(files(folder)) == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_pipeline_ends_its_processes(tmp_path: Path, make_stages: MakeStages, number: signal.Signals):
    folder = tmp_path / "run"
    process = start(make_stages(folder, seconds=60), folder)
    log = folder / "logs" / "pixel_expert.log"
    while not log.exists():
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 130
    with alone_in(folder):  # a process that lives would hold the lock
        pass


def test_a_killed_pipeline_leaves_no_process_behind(tmp_path: Path, make_stages: MakeStages):
    folder = tmp_path / "run"
    process = start(make_stages(folder, seconds=60), folder)
    while not (folder / "logs" / "pixel_expert.log").exists():
        time.sleep(0.05)
    time.sleep(0.2)
    process.kill()
    process.join()
    begin = time.monotonic()
    with alone_in(folder):
        assert time.monotonic() - begin < 5
