"""Scaling of grey values to [0, 1], and the settings of it that are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from samora_monai.data import ScaleScand, ScanScaling
from samora_monai.errors import InputError


def test_ct_window():
    hu = torch.tensor([-1000.0, -125, -25, 75, 275, 3000]).reshape(1, 1, 2, 3)
    out = ScaleScand("image")({"image": MetaTensor(hu), "model": "kept"})["image"]
    torch.testing.assert_close(out.as_tensor().flatten(), torch.tensor([0, 0, 0.25, 0.5, 1, 1]))
    narrow = ScaleScand("image", ScanScaling(window=[0, 100]))({"image": hu})["image"]
    torch.testing.assert_close(torch.as_tensor(narrow).flatten(), torch.tensor([0, 0, 0, 0.75, 1, 1]))


def test_mr_percentiles():
    grey = torch.arange(1001, dtype=torch.float32).reshape(1, 7, 11, 13)
    out = ScaleScand("image", ScanScaling("MR", percentiles=(10, 90)))({"image": grey})["image"]
    expected = ((grey - 100) / 800).clamp(0, 1)
    torch.testing.assert_close(torch.as_tensor(out), expected)


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_constant_mr_volume_becomes_zeros(value):
    out = ScaleScand("image", ScanScaling("MR"))({"image": torch.full((1, 2, 3, 4), value)})["image"]
    assert out.shape == (1, 2, 3, 4)
    assert not out.any()


@pytest.mark.filterwarnings("ignore:Divide by zero")
def test_mr_volume_that_is_nearly_all_background():
    grey = torch.zeros(1, 10, 10, 10)
    grey[0, 0, 0, 0] = 500
    out = ScaleScand("image", ScanScaling("MR"))({"image": grey})["image"]
    torch.testing.assert_close(torch.as_tensor(out), grey / 500)


@pytest.mark.parametrize(("intensity", "axes"), [("volume_zscore", (0, 1, 2, 3)), ("slice_zscore", (0, 1, 3))])
def test_z_scores_from_minus_three_to_three_become_zero_to_one(intensity, axes):
    """Of a coronal slice, along axis 2 of [1, X, Y, Z]; any linear change of the grey levels changes nothing."""
    grey = np.random.default_rng(0).normal(size=(1, 12, 5, 13)) ** 3
    z = (grey - grey.mean(axes, keepdims=True)) / grey.std(axes, keepdims=True)
    assert np.abs(z).max() > 3.5  # some are clipped
    scale = ScaleScand("image", ScanScaling("MR", slice_axis=1, intensity=intensity))
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    for values in (grey, 70 * grey + 200):
        image = MetaTensor(torch.tensor(values, dtype=torch.float32), affine=affine)
        out = scale({"image": image})["image"]
        assert isinstance(out, MetaTensor) and torch.equal(out.affine, affine.to(out.affine))
        np.testing.assert_allclose(out.numpy(), np.clip(0.5 + z / 6, 0, 1), atol=2e-6)


def test_constant_slices_become_zeros_under_z_scores():
    grey = torch.full((1, 4, 4, 3), 0.1)
    grey[..., 1] = torch.arange(16.0).reshape(4, 4)
    out = ScaleScand("image", ScanScaling("MR", intensity="slice_zscore"))({"image": grey})["image"]
    assert not out[..., 0].any() and not out[..., 2].any() and float(out[..., 1].mean()) == pytest.approx(0.5)
    constant = ScaleScand("image", ScanScaling("MR", intensity="volume_zscore"))(
        {"image": torch.full((1, 2, 2, 2), 0.1)}
    )
    assert not constant["image"].any()


def test_the_window_of_ct_stands_under_any_intensity():
    hu = torch.tensor([-1000.0, 75, 275, 3000]).reshape(1, 1, 2, 2)
    out = ScaleScand("image", ScanScaling("CT", intensity="slice_zscore"))({"image": hu})["image"]
    torch.testing.assert_close(torch.as_tensor(out).flatten(), torch.tensor([0, 0.5, 1, 1]))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"modality": "PET"}, "modality must be 'CT' or 'MR', got 'PET'"),
        (
            {"window": (275, -125)},
            r"window must be two increasing numbers, got \(275, -125\); use for example --window",
        ),
        ({"window": 400}, "window must be two increasing numbers, got 400"),
        ({"window": "[-125,275"}, r"window must be two increasing numbers, got '\[-125,275'"),
        ({"window": (5, 5)}, "window must be two increasing numbers"),
        ({"percentiles": (0.5, 101)}, "percentiles must be two increasing numbers"),
        ({"percentiles": (0, 101)}, "percentiles must be two increasing numbers"),
        ({"slice_axis": 3}, r"slice_axis must be 0 \(sagittal\), 1 \(coronal\) or 2 \(axial\), got 3; leave it out"),
        ({"slice_axis": -1}, "slice_axis must be .*, got -1"),
        ({"slice_axis": True}, "slice_axis must be .*, got True"),
        ({"intensity": "z"}, "intensity must be one of percentiles, volume_zscore, slice_zscore, got 'z'"),
    ],
)
def test_scale_settings_refused(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        ScanScaling(**settings)
