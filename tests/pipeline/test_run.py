"""A pipeline of scripts in place of bundles: order, what is not repeated, failures."""

from __future__ import annotations

import errno
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from samora_monai.pipeline import record, run
from samora_monai.pipeline.run import alone_in, run_stages
from tests.pipeline.conftest import TRAINING, MakeStages
from tests.tiny import refused

Capture = pytest.CaptureFixture[str]
MADE = "pixel_expert 1\npixel_expert 2\npixel_expert 3+fine_tuning 1\nfine_tuning 2\nfine_tuning 3"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a pipeline."""
    path = tmp_path / "run"
    path.mkdir()
    return path


def started(text: str) -> list[str]:
    """The stages that a pipeline has started, by what it printed."""
    return [line.split()[1] for line in text.splitlines() if line.startswith("[") and "; log: " in line]


def test_stages_run_in_their_order_and_once(folder: Path, make_stages: MakeStages, capsys: Capture):
    stages = make_stages(folder)
    run_stages(stages, folder, jobs=2, threads=1)
    assert (folder / "results" / "summary.txt").read_text() == MADE
    text = capsys.readouterr().out
    assert started(text) == ["pixel_expert", "fine_tuning", "evaluation"]
    assert "\r" not in text and "epoch" not in text  # no progress line in a file
    run_stages(stages, folder)
    assert capsys.readouterr().out == "3 of 3 stages were finished earlier\n"


def test_a_changed_setting_repeats_what_depends_on_it(folder: Path, make_stages: MakeStages, capsys: Capture):
    run_stages(make_stages(folder, epochs=1), folder)
    capsys.readouterr()
    run_stages(make_stages(folder, epochs=1, learning_rate=0.5), folder)
    text = capsys.readouterr().out
    assert started(text) == ["fine_tuning", "evaluation"]
    assert "fine_tuning is made again, because it was made with other settings.learning_rate\n" in text


def test_a_changed_scan_repeats_everything(folder: Path, scan: Path, make_stages: MakeStages, capsys: Capture):
    run_stages(make_stages(folder, epochs=1), folder)
    scan.write_text("other voxels")
    capsys.readouterr()
    run_stages(make_stages(folder, epochs=1), folder)
    text = capsys.readouterr().out
    assert len(started(text)) == 3 and "pixel_expert is made again, because it was made with other scans\n" in text


def test_an_expert_is_made_again_only_if_it_is_needed(folder: Path, make_stages: MakeStages, capsys: Capture):
    run_stages(make_stages(folder, epochs=1), folder)
    shutil.rmtree(folder / "bundles")
    capsys.readouterr()
    run_stages(make_stages(folder, epochs=1), folder)
    assert started(capsys.readouterr().out) == []
    shutil.rmtree(folder / "samora")
    run_stages(make_stages(folder, epochs=1), folder)
    assert started(capsys.readouterr().out) == ["pixel_expert", "fine_tuning", "evaluation"]  # of the new model


def test_a_failed_stage_is_one_sentence_and_goes_on_later(folder: Path, make_stages: MakeStages, capsys: Capture):
    obstacle = (
        "import pathlib\nif pathlib.Path(sys.argv[1]).name == 'samora' and epoch == 3: sys.exit('error: no luck.')\n"
    )
    script = TRAINING.replace("    time.sleep", "    " + obstacle.replace("\n", "\n    ") + "time.sleep")
    with refused("stage 'fine_tuning' failed: no luck; log: ", "logs/fine_tuning.log; correct the cause and repeat"):
        run_stages(make_stages(folder, script=script), folder)
    assert started(capsys.readouterr().out) == ["pixel_expert", "fine_tuning"]
    run_stages(make_stages(folder), folder)
    text = capsys.readouterr().out
    assert text.startswith("1 of 3 stages were finished earlier\n[2/3] fine_tuning goes on after epoch 2; log: ")
    assert (folder / "results" / "summary.txt").read_text() == MADE


def test_what_runs_beside_a_failed_stage_is_ended(folder: Path, make_stages: MakeStages):
    failing, *_ = make_stages(folder, script="raise SystemExit('error: no luck')")
    long, *_ = make_stages(folder, seconds=60)
    stages = [replace(failing, name="first"), replace(long, name="second", folder=folder / "second")]
    with refused("stage 'first' failed: no luck"):
        run_stages(stages, folder, jobs=2)
    with alone_in(folder):  # a process that lives would hold the lock
        pass


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import os; os.kill(os.getpid(), 9)", ("signal 9 ended it, perhaps for want of memory",)),
        ("print('nothing done')", ("it ended without '", "models/model.pt'")),
        ("raise ValueError('three\\nlines')", ("failed: ValueError: three; log",)),
    ],
)
def test_every_end_of_a_stage_is_told_apart(folder: Path, make_stages: MakeStages, script: str, words: tuple[str, ...]):
    with refused("stage 'pixel_expert' failed: ", *words):
        run_stages(make_stages(folder, script=script), folder)


def test_a_stage_that_was_complete_is_not_resumed(folder: Path, make_stages: MakeStages, capsys: Capture):
    """A kill between the last epoch and its record; the bundle would refuse to resume."""
    stages = make_stages(folder)
    run_stages(stages, folder)
    run.records_of(stages, folder)["fine_tuning"].start()
    capsys.readouterr()
    run_stages(stages, folder)
    assert "[2/3] fine_tuning was complete\n" in capsys.readouterr().out


def test_a_damaged_last_checkpoint_starts_the_stage_anew(folder: Path, make_stages: MakeStages, capsys: Capture):
    stages = make_stages(folder)
    run_stages(stages, folder)
    run.records_of(stages, folder)["fine_tuning"].start()
    (folder / "samora" / "eval" / "last.pt").write_bytes(b"damaged")
    capsys.readouterr()
    run_stages(stages, folder)
    assert "[2/3] fine_tuning starts; log: " in capsys.readouterr().out
    assert (folder / "results" / "summary.txt").read_text() == MADE


def test_a_folder_that_is_no_bundle_is_not_removed(folder: Path, make_stages: MakeStages):
    (folder / "samora").mkdir()
    (folder / "samora" / "thesis.txt").write_text("two years")
    with refused("samora' is in the way", "move it"):
        run_stages(make_stages(folder, epochs=1), folder)
    assert (folder / "samora" / "thesis.txt").exists()


def test_two_pipelines_in_one_folder_are_refused(folder: Path, make_stages: MakeStages):
    with alone_in(folder), refused("another pipeline works in", "(process ", "--output"):
        run_stages(make_stages(folder), folder)


def test_a_full_disk_is_named(folder: Path, make_stages: MakeStages, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run, "_LITTLE", 1 << 62)
    with refused("failed: the disk is full (torch cannot write); log"):
        run_stages(make_stages(folder, script="raise SystemExit('torch cannot write')"), folder)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(record, "replacing", full)
    with refused("cannot write", "records/pixel_expert.json': No space left on device", "free space"):
        run_stages(make_stages(folder), folder)


def test_a_disk_that_is_full_at_the_start_is_named(
    folder: Path, make_stages: MakeStages, monkeypatch: pytest.MonkeyPatch
):
    stages = make_stages(folder, epochs=1)

    def full(*_: Any) -> None:
        raise shutil.Error([("source", "target", "[Errno 28] No space left on device")])

    with monkeypatch.context() as patch:
        patch.setattr(run, "copy_bundle", full)
        with refused("stage 'pixel_expert' failed: [Errno 28] No space left on device; log: ", "repeat the command"):
            run_stages(stages, folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # no file can grow
    try:
        with refused("cannot write", ".lock': File too large; free space"):
            run_stages(stages, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
