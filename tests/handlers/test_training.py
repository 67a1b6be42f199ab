"""The handlers of a trainer as one, and the event file that they write."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents
from monai.handlers import from_engine
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from samora_monai.handlers import OverlayToTensorBoard, TensorBoard, TrainingHandlers, ValidationLog
from samora_monai.losses import HierarchicalLoss, second_stage_weight
from tests.handlers.conftest import build_run


def run_with_training_handlers(
    folder: Path, epochs: int = 3, validate: bool = True, val_interval: int = 2, max_gradient_norm: float | None = None
) -> SimpleNamespace:
    """The tiny training with `TrainingHandlers`, validated by default in epoch 2 and in the last one."""
    run = build_run(folder, epochs, decollate=False, handlers=False)
    run.tensorboard = TensorBoard(folder / "events")
    ValidationLog(tensorboard=run.tensorboard).attach(run.evaluator)
    validator = run.evaluator if validate else None
    TrainingHandlers(
        run.scheduler, validator, val_interval, run.tensorboard, max_gradient_norm=max_gradient_norm
    ).attach(run.trainer)
    return run


def test_order_of_an_epoch(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """The schedule steps after every iteration; validation runs at its interval and after the last epoch."""
    caplog.set_level("INFO", "samora_monai")
    run = run_with_training_handlers(tmp_path)
    rates, validated = [], []
    run.trainer.add_event_handler(Events.ITERATION_STARTED, lambda e: rates.append(e.optimizer.param_groups[0]["lr"]))
    run.evaluator.add_event_handler(Events.COMPLETED, lambda engine: validated.append(engine.state.epoch))
    run.trainer.run()
    assert rates == pytest.approx([0.05 * run.scheduler.lr_lambdas[0](step) for step in range(9)])
    assert validated == [2, 3]
    assert [message.split()[0] for message in caplog.messages] == [
        "epoch",
        "epoch",
        "validation",
        "epoch",
        "validation",
    ]


def test_one_event_file_holds_losses_and_metrics(tmp_path: Path):
    run, losses = run_with_training_handlers(tmp_path), []
    loss_of = from_engine(["loss"], first=True)  # as MONAI's MLflow settings take it
    run.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(loss_of(engine.state.output).item())
    )
    run.trainer.run()
    (file,) = (tmp_path / "events").iterdir()
    events = EventAccumulator(str(file)).Reload()
    assert set(events.Tags()["scalars"]) == {"train_loss", "val_mean_dice"}
    assert [event.value for event in events.Scalars("train_loss")] == pytest.approx(losses)
    assert [event.step for event in events.Scalars("train_loss")] == list(range(1, 10))
    assert [event.step for event in events.Scalars("val_mean_dice")] == [2, 3]
    assert events.Scalars("val_mean_dice")[-1].value == pytest.approx(run.evaluator.state.metrics["val_mean_dice"])


def test_other_ranks_write_no_event_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ignite.distributed.get_rank", lambda: 1)
    run = run_with_training_handlers(tmp_path)
    OverlayToTensorBoard(run.tensorboard).attach(run.evaluator)
    run.trainer.run()
    assert not (tmp_path / "events").exists()
    assert run.trainer.state.iteration == 9 and run.evaluator.state.epoch == 3


@pytest.mark.parametrize(("interval", "epochs", "expected"), [(2, 5, [2, 4, 5]), (2, 4, [2, 4]), (5, 3, [3])])
def test_validates_at_every_interval_and_after_the_last_epoch(
    tmp_path: Path, interval: int, epochs: int, expected: list[int]
):
    run, validated = run_with_training_handlers(tmp_path, epochs, val_interval=interval), []
    run.evaluator.add_event_handler(Events.COMPLETED, lambda engine: validated.append(engine.state.epoch))
    run.trainer.run()
    assert validated == expected


def test_without_validator_nothing_is_validated(tmp_path: Path):
    run = run_with_training_handlers(tmp_path, validate=False)
    run.trainer.run()
    assert run.trainer.state.iteration == 9
    assert run.evaluator.state.iteration == 0 and not run.model_file.exists()


def test_bad_loss_stops_before_the_validation(tmp_path: Path):
    run = run_with_training_handlers(tmp_path)
    run.trainer.loss_function = lambda pred, label: pred.sum() * math.nan
    with pytest.raises(ValueError, match="the loss became nan in step 1 "):
        run.trainer.run()
    assert run.evaluator.state.iteration == 0


def test_hierarchical_loss_gets_the_epoch(tmp_path: Path):
    """Its weight is that of the epoch counted from 0, after a resume too."""
    run = run_with_training_handlers(tmp_path, validate=False)
    run.trainer.loss_function = loss = HierarchicalLoss()
    run.trainer.inferer = lambda image, network: [network(image), network(image)]
    weights = []
    run.trainer.add_event_handler(Events.ITERATION_STARTED, lambda: weights.append(second_stage_weight(loss.epoch)))
    run.trainer.state.epoch, run.trainer.state.iteration = 1, 3
    run.trainer.run()
    np.testing.assert_allclose(weights, [0.6 ** (0.99**epoch) for epoch in (1, 1, 1, 2, 2, 2)], rtol=1e-12)


def test_overlay_is_in_the_event_file_of_the_run(tmp_path: Path):
    run = run_with_training_handlers(tmp_path)
    volume = {key: MetaTensor(torch.ones(1, 4, 4, 2)) for key in ("image", "label", "pred")}
    run.evaluator.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: setattr(engine.state, "output", [volume])
    )
    OverlayToTensorBoard(run.tensorboard).attach(run.evaluator)
    run.trainer.run()
    (file,) = (tmp_path / "events").iterdir()
    events = EventAccumulator(str(file)).Reload()
    assert [event.step for event in events.Images("validation/overlay")] == [2, 3]


@pytest.mark.parametrize("limit", [None, 1e-3])
def test_gradients_have_at_most_the_given_norm(tmp_path: Path, limit: float | None):
    run = run_with_training_handlers(tmp_path, max_gradient_norm=limit)
    norms = []

    def record() -> None:
        gradients = [p.grad for p in run.trainer.network.parameters() if p.grad is not None]
        norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))

    run.trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, record)
    run.trainer.run()
    assert norms and all(norm == pytest.approx(limit, rel=1e-3) if limit else norm > 1e-2 for norm in norms)
