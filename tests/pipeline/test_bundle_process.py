"""Processes of bundles: their commands, logs and ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from samora_monai.pipeline.bundle_process import (
    FailedRun,
    bundle_command,
    copy_bundle,
    error_line,
    remove_bundle,
    run_process,
    run_visibly,
    shown,
)
from tests.tiny import refused


def test_a_shown_command_can_be_pasted(tmp_path: Path):
    """A shell makes the same words of it."""
    settings = {"window": [-125, 275], "names": ["a", "b's"], "data": '$f("/a b")', "a::b": 1, "none": None}
    command = bundle_command(tmp_path / "my bundle", "training", ["train.yaml", "evaluate.yaml"], settings)
    echo = f"{sys.executable} -c 'import sys; print(sys.argv[1:])' "
    arguments = shown(command).split(" ", 1)[1]
    words = subprocess.run(echo + arguments, shell=True, capture_output=True, text=True, check=True).stdout
    assert words.strip() == str(command[1:])
    (one,) = (bundle_command(tmp_path, "training", ["train.yaml"], {})[6],)
    assert one == f"{tmp_path}/configs/train.yaml"


def test_the_interpreter_is_shown_so_that_it_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shown([sys.executable, "-m", "monai.bundle"]) == f"{sys.executable} -m monai.bundle"
    (tmp_path / "python").symlink_to(sys.executable)
    assert shown([str(tmp_path / "python"), "-m", "monai.bundle"]) == "python -m monai.bundle"


def test_a_copy_of_a_bundle_holds_no_results(tmp_path: Path):
    bundle = copy_bundle("samora_pixel_expert", tmp_path / "bundle")
    assert (bundle / "configs" / "train.yaml").is_file() and not (bundle / "models").exists()
    with pytest.raises(FileExistsError):
        copy_bundle("samora_pixel_expert", bundle)


def test_an_interrupted_copy_or_removal_leaves_no_part_of_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A killed pipeline would take the part for a folder of the user, and refuse to go on."""
    folder = tmp_path / "bundle"

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "copystat", killed)  # of the first file
        copy_bundle("samora_pixel_expert", folder)
    assert not folder.exists()
    copy_bundle("samora_pixel_expert", folder)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "unlink", killed)
        remove_bundle(folder)
    assert not folder.exists()
    remove_bundle(copy_bundle("samora_pixel_expert", folder))
    assert list(tmp_path.iterdir()) == []


def test_the_line_of_a_log_that_says_why(tmp_path: Path):
    log = tmp_path / "a.log"
    assert error_line(log) == "none"
    log.write_text("epoch 1\nerror: no scans in '/data'\nwarning: leaked semaphore\n\n")
    assert error_line(log) == "no scans in '/data'"
    log.write_text("error: old\n$ python\nTraceback\nValueError: three\nTraceback\nRuntimeError: Failed\n  '@a'\n")
    assert error_line(log) == "ValueError: three"
    log.write_bytes(b"x" * 100_000 + b"\n\xff end\n")
    assert error_line(log) == "\ufffd end"


def test_a_failed_run_names_its_cause(tmp_path: Path):
    log = tmp_path / "a.log"
    with refused("ended with code 3", str(log), "its last line: bad", error=FailedRun):
        run_process([sys.executable, "-c", "print('error: bad'); raise SystemExit(3)"], log, None)
    with refused("signal 9 ended it", "want of memory", error=FailedRun):
        run_process([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], log, None)
    assert log.read_text().count("$ ") == 2


def test_a_visible_run_returns_its_code(capfd: pytest.CaptureFixture[str]):
    assert run_visibly([sys.executable, "-c", "print('here'); raise SystemExit(4)"]) == 4
    assert capfd.readouterr().out == "here\n"


def test_the_warning_about_configs_is_hidden_for_own_ones(capfd: pytest.CaptureFixture[str], tmp_path: Path):
    warn = "import warnings; warnings.warn('parsing config_file a.yaml: no allow list'); warnings.warn('another')"
    for trusted, count in ((True, 0), (False, 1)):
        assert run_visibly([sys.executable, "-c", warn], trusted) == 0
        shown = capfd.readouterr().err
        assert shown.count("UserWarning: parsing config_file") == count and "UserWarning: another" in shown
    run_process([sys.executable, "-c", warn], tmp_path / "log", None)
    assert (tmp_path / "log").read_text().count("UserWarning:") == 1


def test_a_visible_run_is_ended_by_a_stop(monkeypatch: pytest.MonkeyPatch):
    started: list[subprocess.Popen[bytes]] = []
    wait = subprocess.Popen.wait

    def interrupted(self: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if timeout is None and self not in started:
            started.append(self)
            raise KeyboardInterrupt
        return wait(self, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_visibly([sys.executable, "-c", "import time; time.sleep(60)"])
    assert started[0].returncode == -signal.SIGTERM
