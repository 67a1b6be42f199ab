"""A loss that is NaN or infinite ends the training, and checking it does not wait for a GPU."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ignite.engine import Engine

from samora_monai.handlers.training import NanGuard
from tests.tiny import refused


def trainer_with(losses: list[Any]) -> Engine:
    """An engine that returns these losses, one per step, in epochs of five steps."""
    trainer = Engine(lambda engine, batch: [{"loss": losses[engine.state.iteration - 1]}])
    NanGuard().attach(trainer)  # type: ignore[arg-type]
    return trainer


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("as_dict", [False, True])
def test_first_bad_step_is_reported(bad: float, as_dict: bool):
    losses = [torch.tensor(1.0, requires_grad=True)] * 6 + [torch.tensor(bad), torch.tensor(math.nan)]
    trainer = trainer_with(losses)
    if as_dict:
        process = trainer._process_function
        trainer._process_function = lambda engine, batch: process(engine, batch)[0]
    with refused(f"the loss became {bad} in step 7 (epoch 2)", "lower --learning_rate", "longer --warmup"):
        trainer.run([0] * 5, max_epochs=2)
    assert trainer.state.iteration == 7


def test_finite_losses_pass():
    trainer = trainer_with([torch.tensor(3e38)] * 10)
    trainer.run([0] * 5, max_epochs=2)
    assert trainer.state.iteration == 10


class OnGpu(torch.Tensor):
    """A tensor of a CPU that claims to be on a GPU, and counts how often its values are read."""

    reads = 0

    @property
    def device(self) -> torch.device:
        return torch.device("cuda")

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__bool__, torch.Tensor.__float__):
            cls.reads += 1
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize(("bad_step", "reads", "stop"), [(None, 8, 20), (2, 1, 3), (10, 4, 10), (19, 8, 20)])
def test_losses_of_a_gpu_are_read_together(monkeypatch, bad_step: int | None, reads: int, stop: int):
    """Every three steps and at the end of an epoch of five, and the step is right all the same."""
    values = [math.nan if step == bad_step else 1.0 for step in range(1, 21)]
    monkeypatch.setattr(OnGpu, "reads", 0)
    monkeypatch.setattr("samora_monai.handlers.training.INTERVAL", 3)
    trainer = trainer_with([torch.tensor(value).as_subclass(OnGpu) for value in values])
    if bad_step is None:
        trainer.run([0] * 5, max_epochs=4)
    else:
        with refused(f"the loss became nan in step {bad_step} (epoch {(bad_step - 1) // 5 + 1})"):
            trainer.run([0] * 5, max_epochs=4)
    assert trainer.state.iteration == stop
    assert OnGpu.reads == reads
