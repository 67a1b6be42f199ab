"""A run that is killed and resumed ends where an uninterrupted one ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from samora_monai.checkpoints.files import write_checkpoint
from samora_monai.errors import InputError, MissingFileError

SCRIPT = Path(__file__).with_name("conftest.py")


@pytest.fixture(scope="module")
def straight(build, tmp_path_factory):
    """Four epochs without interruption."""
    run = build(tmp_path_factory.mktemp("straight"))
    run.trainer.run()
    return run


def position(run):
    """What has to agree in the end."""
    steps = {int(state["step"]) for state in run.objects["optimizer"].state.values()}
    scheduler = run.objects["lr_scheduler"]
    return run.trainer.state.epoch, run.trainer.state.iteration, steps, scheduler.last_epoch, scheduler.get_last_lr()


def test_killed_and_resumed_is_straight_through(build, straight, tmp_path, capsys):
    killed = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, check=False)
    assert killed.returncode == 9
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["iteration"] == 6  # epochs 1 and 2 are safe
    run = build(tmp_path)
    run.last.resume()
    run.trainer.run()
    assert "resuming after epoch 2" in capsys.readouterr().out
    assert position(run) == position(straight) == (4, 12, {12}, 12, straight.objects["lr_scheduler"].get_last_lr())
    assert run.best.state_dict() == pytest.approx(straight.best.state_dict())
    want = torch.load(straight.model_file, weights_only=True)
    got = torch.load(run.model_file, weights_only=True)
    assert set(got) == {"weight", "bias"}  # flat
    torch.testing.assert_close(got, want)  # another process may add in another order


def test_worse_epoch_after_resume_leaves_the_best_weights(build, tmp_path):
    first = build(tmp_path, epochs=2)
    first.trainer.run()
    run = build(tmp_path, epochs=3)
    run.last.resume()
    run.best.load_state_dict({"best_metric": 2.0, "best_metric_epoch": 1})  # no epoch can beat it
    before = run.model_file.stat().st_mtime_ns
    run.trainer.run()
    assert run.model_file.stat().st_mtime_ns == before
    assert run.best.state_dict() == {"best_metric": 2.0, "best_metric_epoch": 1}
    assert torch.load(tmp_path / "last.pt", weights_only=True)["best_metric"]["best_metric"] == 2.0


def test_failed_save_keeps_the_former_file(tmp_path):
    path = tmp_path / "last.pt"
    write_checkpoint({"a": 1}, path)
    with pytest.raises(AttributeError):
        write_checkpoint({"a": lambda: 0}, path)  # cannot be pickled
    assert torch.load(path, weights_only=True) == {"a": 1}


def test_refuses_files_that_cannot_be_resumed(build, straight, tmp_path):
    run = build(tmp_path)
    path = tmp_path / "last.pt"
    with pytest.raises(MissingFileError, match=r"last\.pt' is not there"):
        run.last.resume()
    whole = (straight.last.path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"last\.pt' cannot be read as a checkpoint"):
        run.last.resume()
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"last\.pt' cannot be read as a checkpoint"):
        run.last.resume()
    path.write_bytes(straight.model_file.read_bytes())
    with pytest.raises(InputError, match=r"holds weight, bias, expected .* model, optimizer"):
        run.last.resume()


def test_refuses_another_run(build, straight, tmp_path):
    (tmp_path / "last.pt").write_bytes(straight.last.path.read_bytes())
    with pytest.raises(InputError, match="completed 4 epochs and this run asks for 4"):
        build(tmp_path, epochs=4).last.resume()
    with pytest.raises(InputError, match="3 iterations per epoch, this run has 2"):
        build(tmp_path, epochs=9, batch=3).last.resume()
    other = build(tmp_path, epochs=9)
    other.last.save_dict["model"] = torch.nn.Conv2d(1, 5, 3)
    with pytest.raises(InputError, match=r"last\.pt' does not fit this run.*size mismatch for weight") as caught:
        other.last.resume()
    assert "\n" not in str(caught.value)
