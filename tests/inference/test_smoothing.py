from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from samora_monai.data import Postprocessing
from samora_monai.errors import InputError
from samora_monai.inference import SliceLabelInferer
from samora_monai.inference.smoothing import smoothed


@pytest.mark.parametrize("width", [0.4, 1.0, 2.4, 7.0])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_smoothing_equals_a_gaussian_of_scipy_with_renormalised_ends(width: float, batch_size: int) -> None:
    logits = torch.randn(11, 4, 5, 6, generator=torch.Generator().manual_seed(0))

    sums = torch.cat(list(smoothed(logits.split(batch_size), width)))

    def gaussian(values: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter1d(values, width, axis=0, mode="constant", truncate=3.0)

    probabilities = logits.softmax(1).numpy().astype(np.float64)
    expected = gaussian(probabilities) / gaussian(np.ones_like(probabilities))
    np.testing.assert_allclose((sums / sums.sum(1, keepdim=True)).numpy(), expected, atol=2e-6)


def test_thick_slices_stay_as_the_network_segments_them() -> None:
    chunks = torch.randn(6, 2, 3, 3).split(2)

    for chunk, same in zip(chunks, smoothed(chunks, 1.0 / 7.0), strict=True):
        assert same is chunk


def _network(slices: torch.Tensor) -> torch.Tensor:
    return torch.cat([1 - slices, slices], 1) * 4


def test_a_slice_that_its_neighbours_contradict_follows_them_at_small_distances_alone() -> None:
    volume = torch.full((1, 1, 4, 4, 9), 0.9)
    volume[..., 4] = 0.3
    near = MetaTensor(volume, affine=torch.diag(torch.tensor([1.0, 1.0, 0.6, 1.0])))
    far = MetaTensor(volume, affine=torch.diag(torch.tensor([1.0, 1.0, 6.0, 1.0])))
    inferer = SliceLabelInferer(2, smoothing=1.5)

    assert inferer(near, _network).unique().tolist() == [1]
    assert inferer(far, _network)[..., 4].unique().tolist() == [0]


def test_the_direction_of_the_slices_is_smoothed_with_its_own_spacing() -> None:
    volume = torch.full((1, 1, 9, 4, 4), 0.9)
    volume[:, :, 4] = 0.3
    affine = torch.diag(torch.tensor([0.6, 6.0, 6.0, 1.0]))

    labels = SliceLabelInferer(2, slice_axis=0, smoothing=1.5)(MetaTensor(volume, affine=affine), _network)

    assert labels.unique().tolist() == [1]


def test_smoothing_without_a_spacing_is_refused() -> None:
    with pytest.raises(InputError, match="no affine"):
        SliceLabelInferer(smoothing=1.0)(torch.zeros(1, 1, 4, 4, 4), _network)


def test_the_largest_component_of_the_named_classes_is_kept() -> None:
    volume = torch.zeros(1, 1, 8, 8, 8)
    volume[..., :4, :4, :4], volume[..., 6:, 6:, 6:] = 1.0, 1.0
    volume[..., 4, 4, 4] = 1.0  # touches the first at a corner

    both = SliceLabelInferer()(volume, _network)
    one = SliceLabelInferer(largest_component=[1])(volume, _network)

    assert both.sum() == 64 + 8 + 1
    assert one.sum() == 64 + 1


@pytest.mark.parametrize("smoothing", [-1, "1.5", True, float("inf")])
def test_a_smoothing_that_is_no_width_is_refused(smoothing: object) -> None:
    with pytest.raises(InputError, match="smoothing must be 0 or a number of mm"):
        Postprocessing(smoothing=smoothing)  # type: ignore[arg-type]


@pytest.mark.parametrize("classes", [[0], [1.5], 1, "1"])
def test_classes_that_are_none_are_refused(classes: object) -> None:
    with pytest.raises(InputError, match="largest_component must be a list of class numbers"):
        Postprocessing(largest_component=classes)  # type: ignore[arg-type]
