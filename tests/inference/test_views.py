"""Views of a slice: moved back to where they came from, and averaged."""

from __future__ import annotations

import pytest
import torch

from samora_monai.inference import SliceLabelInferer
from samora_monai.inference.views import VIEWS, averaged


def pointwise(slices: torch.Tensor) -> torch.Tensor:
    """Two classes by the grey value alone, so that every view of a pixel has the same logits."""
    return torch.cat([0.5 - slices, slices - 0.5], 1) * 8


def blob(height: int, width: int) -> torch.Tensor:
    """A smooth spot away from the centre."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    return torch.exp(-20 * ((y - 0.3) ** 2 + (x - 0.65) ** 2))[None, None]


@pytest.mark.parametrize("size", [(64, 64), (60, 90)])
def test_each_view_is_moved_back_to_its_place(size: tuple[int, int]):
    """A grey value decides a class, so the mean over the views is that of the slice, but for interpolation."""
    slices = blob(*size)
    p, mean = pointwise(slices).softmax(1), averaged(slices, pointwise).softmax(1)
    inside = (..., slice(8, -8), slice(8, -8))
    assert (mean - p)[inside].abs().max() < 0.03
    assert (p.argmax(1) != mean.argmax(1)).sum() <= 2 and p.argmax(1).sum() > 100


def test_the_mean_is_one_of_probabilities_of_the_views_that_show_the_pixel():
    """A network that answers p = 0.2, 0.5, 0.8 in turn: the middle gets the mean of all.

    The third view shows no edge, the second no corner.
    """
    answers = iter([0.2, 0.5, 0.8])
    slices = torch.rand(2, 1, 64, 64)

    def network(x: torch.Tensor) -> torch.Tensor:
        p = next(answers)
        return torch.tensor([1 - p, p]).log().reshape(1, 2, 1, 1).expand(len(x), 2, *x.shape[-2:])

    p = averaged(slices, network).softmax(1)[:, 1]
    assert torch.allclose(p[:, 12:-12, 12:-12], torch.tensor(0.5), atol=1e-5)
    assert torch.allclose(p[:, [0, 63, 32, 32], [32, 32, 0, 63]], torch.tensor(0.35), atol=1e-5)
    assert torch.allclose(p[:, [0, 0, 63, 63], [0, 63, 0, 63]], torch.tensor(0.2), atol=1e-5)


def test_views_differ_from_the_slice_within_the_range_of_training():
    for view in VIEWS:
        scale = torch.linalg.det(view).sqrt()
        angle = torch.atan2(view[1, 0], view[0, 0])
        assert abs(angle) == pytest.approx(0.15) and abs(scale - 1) < 0.15
        assert torch.allclose(view.T @ view, scale**2 * torch.eye(2), atol=1e-6)  # no shear, no flip


def test_an_inferer_takes_the_views_as_asked():
    seen = []

    def network(slices: torch.Tensor) -> torch.Tensor:
        seen.append(len(slices))
        return pointwise(slices)

    volume = blob(32, 32)[..., None].expand(1, 1, 32, 32, 5)
    off, on = (SliceLabelInferer(2, tta=tta)(volume, network) for tta in (False, "true"))
    assert seen == [2, 2, 1] + 3 * [2] + 3 * [2] + 3 * [1]
    assert (off != on).sum() <= 10 and off.sum() > 200
