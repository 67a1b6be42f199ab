"""The learning rate against the rates that the reference trainers used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from samora_monai.schedules import WarmupCosineLR, WarmupPolyLR

LR = np.load(Path(__file__).parent / "goldens" / "lr.npz")


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


def test_a_longer_run_resumes_on_its_own_cosine():
    """MONAI's schedule also restores the former length, after which its cosine rises again."""

    def build(length):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        return optimizer, WarmupCosineLR(optimizer, 2, length)

    def rates(optimizer, scheduler, steps):
        used = []
        for _ in range(steps):
            used.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return used

    straight = rates(*build(20), 20)
    assert straight[0] == pytest.approx(0.001) and max(straight) == straight[2] == pytest.approx(0.1)
    first, scheduler = build(10)
    rates(first, scheduler, 10)
    second, longer = build(20)
    second.load_state_dict(first.state_dict())
    longer.load_state_dict(scheduler.state_dict())
    np.testing.assert_allclose(rates(second, longer, 10)[1:], straight[11:], rtol=1e-9)  # the first is the saved one
