"""Scaling of grey values to [0, 1], and the settings of it that are refused."""

from __future__ import annotations

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
    ],
)
def test_scale_settings_refused(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        ScanScaling(**settings)
