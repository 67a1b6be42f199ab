"""The learning rate against the rates that the reference trainers used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from samora_monai.engine.schedule import WarmupPolyLR

LR = np.load(Path(__file__).parents[1] / "goldens" / "lr.npz")


@pytest.mark.parametrize(
    ("run", "base", "warmup", "max_iterations", "exponent"),
    [
        ("samed", 0.005, 5, 12, 0.9),
        ("samed_250", 0.005, 250, 600, 0.9),
        ("samed_nowarmup", 0.01, 0, 18, 0.9),
        ("samedh_exp7", 0.005, 5, 24, 7),
        ("hsam", 0.0026, 5, 12, 0.9),
    ],
)
def test_is_the_reference_schedule(run, base, warmup, max_iterations, exponent):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    scheduler = WarmupPolyLR(optimizer, warmup, max_iterations, exponent)
    used, logged = [], []
    for _ in LR[f"{run}_used"]:
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        logged.append(float(scheduler.get_last_lr()[0]))
    np.testing.assert_allclose(used, LR[f"{run}_used"], rtol=1e-12)
    np.testing.assert_allclose(logged, LR[f"{run}_logged"], rtol=1e-12)


def test_state_survives_a_weights_only_file(tmp_path):
    def build():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        return optimizer, WarmupPolyLR(optimizer, 3, 20)

    optimizer, scheduler = build()
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    torch.save(scheduler.state_dict(), tmp_path / "s.pt")
    _, fresh = build()
    fresh.load_state_dict(torch.load(tmp_path / "s.pt", weights_only=True))
    scheduler.step()
    fresh.step()
    assert fresh.get_last_lr() == scheduler.get_last_lr()


@pytest.mark.parametrize(("warmup", "max_iterations"), [(-1, 10), (5, 0)])
def test_refuses_impossible_lengths(warmup, max_iterations):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match="max_iterations"):
        WarmupPolyLR(optimizer, warmup, max_iterations)
