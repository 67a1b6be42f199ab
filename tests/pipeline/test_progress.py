"""How far a pipeline is, and how long it takes."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from samora_monai.pipeline.progress import STARTUP, Position, Screen, position, progress_line, seconds_left
from samora_monai.pipeline.stages import Stage

TRAINING = "epoch 2/4  45.0%  loss 0.31  lr 1.2e-3  31 slices/s  ETA 00:02:05"


def stage(name: str, work: float, *needs: str) -> Stage:
    return Stage(name, "", Path(), "", (), {}, {}, needs=needs, work=work)


def test_the_position_of_a_training_is_that_of_its_log(tmp_path: Path):
    log = tmp_path / "a.log"
    assert position(log, 5) == Position()
    log.write_text(f"$ python\n{TRAINING}\nvalidation mean Dice 0.8 (best 0.8 at epoch 1)\n")
    assert position(log, 60) == Position("epoch 2/4 45.0% loss 0.31 31 slices/s", 0.45, 125)
    os.utime(log, (time.time() - 25, time.time() - 25))
    assert position(log, 60).seconds_left == 100
    with open(log, "a") as file:
        print("$ python --resume True", file=file)  # a new start: nothing is known yet
    assert position(log, 1) == Position()


def test_the_position_of_an_inference_is_extrapolated(tmp_path: Path):
    log = tmp_path / "a.log"
    log.write_text("$ python\n[1/4] a.nii.gz -> b.nii.gz  80 slices, 4.2 s  liver 1410.3 ml\n")
    assert position(log, 10) == Position("scan 1 of 4", 0.25, 30)


def test_the_time_left_follows_the_measured_rate():
    stages = [stage("a", 10), stage("b", 20), stage("c", 5, "a", "b")]
    assert seconds_left(stages, {}, {}, 1) is None
    rate = {"earlier": 2.0}
    assert seconds_left(stages, rate, {}, 1) == 3 * STARTUP + 2 * 35
    assert seconds_left(stages, rate, {}, 2) == 2 * STARTUP + 2 * 25  # b and then c
    running = {"a": Position("", 0.5, 30.0)}  # six seconds for a unit of work
    left = seconds_left(stages[:1] + stages[2:], {}, running, 2)
    assert left == 30 + STARTUP + 6 * 5


def test_the_progress_line_fits_the_terminal():
    running = {"image_expert": Position("epoch 2/4 45.0%", 0.45, 9), "pixel_expert": Position()}
    line = progress_line([5, 3], 9, running, 3725, 200)
    assert line == "stage 3 and 5 of 9  image_expert: epoch 2/4 45.0%  pixel_expert: runs  left about 01:02:05"
    short = progress_line([5, 3], 9, running, 3725, 60)
    assert len(short) == 60 and short.endswith("...  left about 01:02:05")
    assert len(progress_line([5, 3], 9, running, None, 10)) == 10


def test_a_terminal_gets_one_line_that_changes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    screen = Screen()
    screen.show("10 %")
    assert capsys.readouterr().out == ""  # a file gets none
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    screen = Screen()
    for line in ("10 %", "20 %"):
        screen.show(line)
    screen.say("finished")
    assert capsys.readouterr().out == "\r\x1b[K10 %\r\x1b[K20 %\r\x1b[Kfinished\n"
