"""The losses against the reference code's numbers (goldens) and the equations."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from samora_monai.losses import HierarchicalLoss, SegmentationLoss, second_stage_weight

GOLDENS = Path(__file__).parent / "goldens"


def golden_inputs(seed, shape, block=5, drop_class=None):
    """Logits and labels as the reference run drew them."""
    b, k, h, w = shape
    logits = (3.0 * np.random.RandomState(seed).standard_normal(shape)).astype(np.float32)
    small = np.random.RandomState(seed + 1).randint(0, k, (b, -(-h // block), -(-w // block)))
    label = np.repeat(np.repeat(small, block, axis=1), block, axis=2)[:, :h, :w]
    if drop_class is not None:
        label = np.where(label == drop_class, 0, label)
    return torch.from_numpy(logits).requires_grad_(), torch.from_numpy(np.ascontiguousarray(label))[:, None]


@pytest.mark.parametrize(
    ("case", "seed", "shape", "drop", "weight"),
    [
        ("loss_c9", 1101, (2, 9, 24, 20), None, 0.8),
        ("loss_c9", 1101, (2, 9, 24, 20), None, 0.9),
        ("loss_c9_absent", 1103, (3, 9, 14, 14), 4, 0.8),
    ],
)
def test_is_the_reference_loss(case, seed, shape, drop, weight):
    want = np.load(GOLDENS / f"{case}.npz")
    logits, label = golden_inputs(seed, shape, drop_class=drop)
    loss = SegmentationLoss(lambda_ce=1 - weight, lambda_dice=weight)(logits, label)
    loss.backward()
    assert loss.item() == pytest.approx(float(want[f"total_w{weight}"]), abs=3e-6)
    np.testing.assert_allclose(logits.grad.numpy(), want[f"grad_w{weight}"], rtol=1e-4, atol=2e-9)


def test_parts_are_the_reference_parts():
    want = np.load(GOLDENS / "loss_c9.npz")
    logits, label = golden_inputs(1101, (2, 9, 24, 20))
    assert SegmentationLoss(1.0, 0.0)(logits, label).item() == pytest.approx(float(want["ce"]), abs=3e-6)
    assert SegmentationLoss(0.0, 1.0)(logits, label).item() == pytest.approx(float(want["dice"]), abs=3e-6)


def test_label_goes_to_the_logits_or_the_logits_to_the_label():
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    coarse = torch.randint(0, 3, (2, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    label = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)  # 16 x 16, constant in 4 x 4 cells
    same_grid = SegmentationLoss()(logits, coarse)
    assert SegmentationLoss()(logits, label).item() == pytest.approx(same_grid.item(), abs=1e-6)
    large = torch.nn.functional.interpolate(logits, (16, 16), mode="bilinear", align_corners=False)
    up = SegmentationLoss(upsample_logits=True)(logits, label)
    assert up.item() == pytest.approx(SegmentationLoss()(large, label).item(), abs=1e-6)
    assert abs(up.item() - same_grid.item()) > 1e-3


def test_half_precision_does_not_overflow():
    """A sum over 8 x 256 x 256 pixels is beyond float16's 65504."""
    loss = SegmentationLoss()(torch.zeros(8, 2, 256, 256, dtype=torch.float16), torch.zeros(8, 1, 256, 256))
    # p = 1/2 everywhere: CE ln 2; Dice loss 1 - 2 * 0.5 / (0.25 + 1) of the background, 1 of the absent class
    assert loss.item() == pytest.approx(0.2 * math.log(2) + 0.8 * (0.2 + 1) / 2, abs=1e-5)


def test_returns_a_plain_tensor_and_pickles():
    logits, label = golden_inputs(1101, (2, 9, 24, 20))
    loss = pickle.loads(pickle.dumps(SegmentationLoss()))(MetaTensor(logits.detach()), MetaTensor(label))
    assert type(loss) is torch.Tensor
    assert loss.item() == pytest.approx(SegmentationLoss()(logits, label).item())


def test_second_stage_weight_is_the_reference_schedule():
    epochs = (0, 1, 2, 10, 50, 100, 150, 200, 250, 299)
    want = np.load(GOLDENS / "loss_hsam_weight.npz")["weight"]
    np.testing.assert_allclose([second_stage_weight(e) for e in epochs], want, rtol=1e-12)


def test_hierarchical_loss_weighs_the_two_stages_by_epoch():
    logits, label = golden_inputs(1101, (2, 9, 24, 20))
    other = torch.zeros(2, 9, 48, 40)
    loss, single = HierarchicalLoss(), SegmentationLoss(0.1, 0.9)
    seen = []
    for epoch in range(3):
        loss.set_epoch(epoch)
        seen.append(loss([logits, other], label).item())
    enlarged = label.repeat_interleave(2, 2).repeat_interleave(2, 3)
    first, second = single(logits, label).item(), single(other, enlarged).item()
    want = [(1 - w) * first + w * second for w in map(second_stage_weight, range(3))]
    np.testing.assert_allclose(seen, want, rtol=1e-6)
