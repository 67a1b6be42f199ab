"""Both metric conventions against stored results of medpy, MONAI's functions, and masks computed by hand."""

from __future__ import annotations

from math import isnan
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.metrics import compute_dice, compute_hausdorff_distance

from samora_monai.metrics import case_metrics, samed_dice_hd95

METRICS = np.load(Path(__file__).parent / "goldens" / "metrics.npz")
NAMES = [
    "near",
    "shifted",
    "far",
    "touching_border",
    "both_empty",
    "pred_empty",
    "gt_empty",
    "identical",
    "single_voxels",
    "voxel_vs_blob",
    "two_d",
]


def golden_masks(name):
    shape = tuple(METRICS[f"{name}_shape"])
    return tuple(
        np.unpackbits(METRICS[f"{name}_{which}"])[: np.prod(shape)].reshape(shape).astype(bool)
        for which in ("pred", "gt")
    )


@pytest.mark.parametrize("name", NAMES)
def test_samed_convention_equals_medpy(name):
    want = METRICS["dice_hd95"][NAMES.index(name)]
    np.testing.assert_allclose(samed_dice_hd95(*golden_masks(name)), want, rtol=0, atol=1e-9)


def test_samed_conventions_for_empty_masks():
    empty, full = np.zeros((3, 3, 3)), np.ones((3, 3, 3))
    assert samed_dice_hd95(empty, empty) == (0.0, 0.0)
    assert samed_dice_hd95(empty, full) == (0.0, 0.0)
    assert samed_dice_hd95(full, empty) == (1.0, 0.0)


def label_maps():
    rng = np.random.default_rng(0)
    label = np.zeros((20, 18, 12), np.uint8)
    label[3:9, 3:9, 2:7] = 1
    label[12:17, 8:15, 4:10] = 2
    label[1:3, 14:17, 1:3] = 3
    pred = np.roll(label, (1, -1, 1), (0, 1, 2))
    pred[rng.random(pred.shape) < 0.002] = 1  # false voxels far from the organ
    pred[pred == 3] = 0  # missed
    pred[17:19, 1:3, 1:3] = 4  # false alarm
    return pred, label


def test_monai_convention_equals_monai():
    pred, label = label_maps()
    spacing = (0.8, 0.7, 2.5)
    rows = case_metrics(pred, label, 6, spacing)
    assert [row.class_index for row in rows] == [1, 2, 3, 4, 5]
    for row in rows[:2]:
        a, b = (torch.from_numpy(m == row.class_index)[None, None] for m in (pred, label))
        assert row.dice == pytest.approx(compute_dice(a, b).item(), abs=1e-6)
        for got, mm in ((row.hd95_mm, spacing), (row.hd95_voxels, None)):
            want = compute_hausdorff_distance(a, b, include_background=True, percentile=95, spacing=mm)
            assert got == pytest.approx(want.item(), abs=1e-5)
        samed = samed_dice_hd95(pred == row.class_index, label == row.class_index)
        assert (row.samed_dice, row.samed_hd95) == pytest.approx(samed, abs=1e-12)


def test_absent_classes_have_no_distance():
    pred, label = label_maps()
    missed, false_alarm, absent = case_metrics(pred, label, 6, (1, 1, 1))[2:]
    assert (missed.dice, missed.samed_dice, missed.samed_hd95) == (0.0, 0.0, 0.0)
    assert isnan(false_alarm.dice) and (false_alarm.samed_dice, false_alarm.samed_hd95) == (1.0, 0.0)
    assert isnan(absent.dice) and (absent.samed_dice, absent.samed_hd95) == (0.0, 0.0)
    assert all(isnan(v) for row in (missed, false_alarm, absent) for v in (row.hd95_mm, row.hd95_voxels))


def test_hd95_in_millimetres_by_hand():
    """Two single voxels, 3 apart along x and 2 along z."""
    pred, label = np.zeros((8, 8, 8), int), np.zeros((8, 8, 8), int)
    pred[1, 1, 1] = label[4, 1, 3] = 1
    (row,) = case_metrics(pred, label, 2, (0.5, 1.0, 4.0))
    assert row.hd95_mm == pytest.approx(np.hypot(1.5, 8.0), abs=1e-6)
    assert row.hd95_voxels == pytest.approx(np.hypot(3, 2), abs=1e-6)
    assert row.samed_hd95 == pytest.approx(np.hypot(3, 2), abs=1e-12)


def test_takes_tensors_of_any_type():
    pred, label = label_maps()
    want = case_metrics(pred, label, 3, (1, 1, 2))
    assert case_metrics(MetaTensor(pred.astype(np.float32)), torch.from_numpy(label), 3, (1, 1, 2)) == want


def test_refuses_different_grids():
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(2, 3\)"):
        samed_dice_hd95(np.ones((2, 2)), np.ones((2, 3)))
    with pytest.raises(ValueError, match="spacing has 2 entries, expected 3"):
        case_metrics(np.ones((2, 2, 2)), np.ones((2, 2, 2)), 2, (1, 1))
