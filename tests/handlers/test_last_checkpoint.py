"""A run that is killed and resumed ends where an uninterrupted one ends."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, RandGaussianNoised

from samora_monai.checkpoints.files import write_checkpoint
from samora_monai.errors import InputError, MissingFileError
from samora_monai.handlers.last_checkpoint import LastCheckpoint, seed_epochs
from tests.nested import assert_equal
from tests.tiny import flip_bit

SCRIPT = Path(__file__).with_name("conftest.py")


@pytest.fixture(scope="module", params=[0, pytest.param(2, marks=pytest.mark.slow)], ids=["in process", "2 workers"])
def straight(request, build, tmp_path_factory):
    """Four epochs without interruption."""
    run = build(tmp_path_factory.mktemp("straight"), workers=request.param)
    run.workers = request.param
    run.last.start()
    run.trainer.run()
    return run


def position(run):
    """What has to agree in the end."""
    steps = {int(state["step"]) for state in run.last.objects["optimizer"].state.values()}
    scheduler = run.last.objects["lr_scheduler"]
    return run.trainer.state.epoch, run.trainer.state.iteration, steps, scheduler.last_epoch, scheduler.get_last_lr()


def test_killed_and_resumed_equals_straight_through(build, straight, tmp_path, caplog):
    command = [sys.executable, str(SCRIPT), str(tmp_path), str(straight.workers)]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == 9, killed.stderr
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["iteration"] == 6  # epochs 1 and 2 are safe
    run = build(tmp_path, workers=straight.workers)
    caplog.set_level("INFO", "samora_monai")
    run.last.start(resume="true")
    assert caplog.messages == [f"resuming after epoch 2 from {run.last.path}"]
    torch.rand(5)  # random numbers drawn outside an epoch change nothing
    run.trainer.run()
    rates = straight.last.objects["lr_scheduler"].get_last_lr()
    assert position(run) == position(straight) == (4, 12, {12}, 12, rates)
    assert run.best.state_dict() == straight.best.state_dict()
    assert set(torch.load(run.model_file, weights_only=True)) == {"1.weight", "1.bias"}  # flat
    for name in ("model.pt", "last.pt"):
        got, want = (torch.load(r.model_file.with_name(name), weights_only=True) for r in (run, straight))
        assert_equal(got, want)


def test_resumed_weights_depend_on_the_random_numbers(build, straight, tmp_path, caplog):
    """The test above would pass without them if they did not matter."""
    first = build(tmp_path, epochs=2, workers=straight.workers)
    first.last.start()
    first.trainer.run()
    run = build(tmp_path, seed=1, workers=straight.workers)
    run.last.start(resume=True)
    assert "the resumed run will not equal an undisturbed one: its seed was 0, this run's is 1" in caplog.messages
    run.trainer.run()
    got, want = (torch.load(r.last.path, weights_only=True)["model"]["state_dict"] for r in (run, straight))
    assert (got["1.weight"] - want["1.weight"]).abs().max() > 1e-3


def test_checkpoint_without_a_seed_resumes_with_a_warning(build, tmp_path, caplog):
    """As the release before wrote it."""
    first = build(tmp_path, epochs=2)
    first.last.start()
    first.trainer.run()
    saved = torch.load(first.last.path, weights_only=True)
    del saved["seed"]
    write_checkpoint(saved, first.last.path)
    run = build(tmp_path, epochs=3)
    run.last.start(resume=True)
    (warning,) = caplog.messages
    assert warning.startswith("the resumed run will not equal an undisturbed one") and "no seed" in warning
    run.trainer.run()
    assert run.trainer.state.iteration == 9
    assert torch.load(run.last.path, weights_only=True)["seed"] == 0


def test_without_resume_nothing_is_restored(build, straight, tmp_path):
    (tmp_path / "last.pt").write_bytes(straight.last.path.read_bytes())
    run = build(tmp_path)
    run.last.start("false")
    assert run.trainer.state.iteration == 0
    with pytest.raises(InputError, match="true or false for resume, got 'yes'"):
        run.last.start("yes")


def test_gradient_scaler_is_restored(build, tmp_path, caplog):
    """On a GPU with amp. The scaler of a CPU behaves alike."""
    run = build(tmp_path, epochs=2)
    run.trainer.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    parts = (run.last.objects[name] for name in ("optimizer", "lr_scheduler"))
    network = run.last.objects["model"].module
    last = LastCheckpoint(tmp_path / "last.pt", network, *parts, run.trainer, run.evaluator)
    run.trainer.scaler.scale(torch.ones(1))
    last.start()
    run.trainer.state.iteration = 3
    last.save()
    run.trainer.scaler.update(2.0)
    last.resume()
    assert run.trainer.scaler.get_scale() == 8.0
    assert caplog.messages == []
    build(tmp_path, epochs=2).last.start(resume=True)
    (warning,) = caplog.messages
    assert "gradients were scaled" in warning


def test_processes_and_epochs_draw_different_numbers(monkeypatch):
    """And the same ones again for the same seed, epoch and process."""
    drawn = {}
    for rank in (0, 1):
        monkeypatch.setattr("samora_monai.handlers.last_checkpoint.idist.get_rank", lambda rank=rank: rank)
        for _ in range(2):
            transform = RandGaussianNoised(keys="image", prob=1.0)
            loader = DataLoader(Dataset([{"image": torch.zeros(1, 4)}], Compose([transform])))
            trainer = Engine(
                lambda engine, batch, rank=rank: drawn.setdefault((rank, engine.state.epoch), []).append(
                    (*batch["image"].flatten().tolist(), random.random(), np.random.rand(), torch.rand(()).item())
                )
            )
            trainer.data_loader = loader
            seed_epochs(trainer, 0)  # type: ignore[arg-type]
            trainer.run(loader, max_epochs=3)
    assert len(drawn) == 6 and all(first == second for first, second in drawn.values())
    values = [value for first, _ in drawn.values() for value in first]
    assert len(set(values)) == len(values) == 6 * 7


def test_validations_draw_the_same_numbers(build, tmp_path):
    """So that the best metric is of the best network, not of the easiest noise; and as after a resume."""
    run, drawn = build(tmp_path, epochs=3), []
    transform = RandGaussianNoised(keys="image", prob=1.0)
    run.evaluator.data_loader.dataset.transform = transform

    def note(engine):
        if engine.state.iteration == 1:
            drawn.append((engine.state.batch[0]["image"].sum().item(), torch.rand(()).item()))

    run.evaluator.add_event_handler(Events.ITERATION_COMPLETED, note)
    run.last.start()
    run.trainer.run()
    assert len(drawn) == 3 and len(set(drawn)) == 1


def test_worse_epoch_after_resume_leaves_the_best_weights(build, tmp_path):
    first = build(tmp_path, epochs=2)
    first.last.start()
    first.trainer.run()
    run = build(tmp_path, epochs=3)
    run.last.start(resume=True)
    run.best.load_state_dict({"best_metric": 2.0, "best_metric_epoch": 1})  # no epoch can beat it
    before = run.model_file.stat().st_mtime_ns
    run.trainer.run()
    assert run.model_file.stat().st_mtime_ns == before
    assert run.best.state_dict() == {"best_metric": 2.0, "best_metric_epoch": 1}
    assert torch.load(tmp_path / "last.pt", weights_only=True)["best"]["best_metric"] == 2.0


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
    path.write_bytes(whole)
    flip_bit(path)
    with pytest.raises(InputError, match=r"last\.pt' cannot be read as a checkpoint: it is damaged"):
        run.last.resume()
    path.write_bytes(straight.model_file.read_bytes())
    with pytest.raises(InputError, match=r"holds 1.weight, 1.bias, expected .* model, optimizer"):
        run.last.resume()


def test_refuses_another_run(build, straight, tmp_path):
    (tmp_path / "last.pt").write_bytes(straight.last.path.read_bytes())
    with pytest.raises(InputError, match="completed 4 epochs and this run asks for 4"):
        build(tmp_path, epochs=4).last.resume()
    with pytest.raises(InputError, match="3 iterations per epoch, this run has 2"):
        build(tmp_path, epochs=9, batch=3).last.resume()
    other = build(tmp_path, epochs=9)
    other.last.objects["model"].module[1] = torch.nn.Conv2d(1, 5, 3)
    with pytest.raises(InputError, match=r"last\.pt' does not fit this run.*size mismatch for 1.weight") as caught:
        other.last.resume()
    assert "\n" not in str(caught.value)
