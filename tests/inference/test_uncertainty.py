"""The entropy of a network's classes, against values by hand."""

from __future__ import annotations

import math

import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter1d

from samora_monai.inference import SliceLabelInferer
from samora_monai.inference.uncertainty import ENTROPY, LEAST, entropy


class Constant(torch.nn.Module):
    """The same class probabilities in every pixel; counts slices."""

    in_channels = 1

    def __init__(self, *p: float) -> None:
        super().__init__()
        self.num_classes, self.slices = len(p), 0
        self.register_buffer("pixel_mean", torch.zeros(3, 1, 1))
        self.logits = torch.tensor(p).log().reshape(1, -1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.slices += len(x)
        return self.logits.expand(len(x), -1, *x.shape[-2:])


@pytest.mark.parametrize("p", [(0.5, 0.25, 0.25), (0.2, 0.8), (1 / 3, 1 / 3, 1 / 3)])
def test_entropy_is_per_expected_voxel_of_foreground(p: tuple[float, ...]):
    expected = -sum(q * math.log(q) for q in p) / math.log(len(p)) / (1 - p[0])
    assert entropy(torch.zeros(1, 6, 5, 40), Constant(*p)) == pytest.approx(expected, rel=1e-4)


def test_a_scan_without_foreground_is_divided_by_a_part_of_its_voxels():
    p = (0.9999, 0.0001)
    expected = -sum(q * math.log(q) for q in p) / math.log(2) / LEAST
    assert entropy(torch.zeros(1, 6, 5, 3), Constant(*p)) == pytest.approx(expected, rel=1e-3)


def test_the_cost_does_not_grow_with_the_slices():
    for depth, slices in ((5, 5), (16, 16), (300, 16)):
        net = Constant(0.5, 0.5)
        entropy(torch.zeros(1, 4, 4, depth), net)
        assert net.slices == slices


@pytest.mark.parametrize("smoothing", [0.0, 1.5])
def test_the_inferer_states_the_mean_entropy_of_the_voxels_that_it_finds(smoothing: float):
    """Of two scans, in the second of which nothing is found; batches of other sizes change nothing."""
    torch.manual_seed(0)
    network, affine = torch.nn.Conv2d(1, 3, 3, padding=1), torch.diag(torch.tensor([1.0, 1.0, 0.6, 1.0]))
    scans = MetaTensor(torch.randn(2, 1, 7, 6, 5), affine=affine)
    scans[1] = 0
    scans[0, ..., 3] = 0
    with torch.no_grad():
        network.bias.copy_(torch.tensor([0.1, 0.0, 0.0]))
        labels = [SliceLabelInferer(size, smoothing=smoothing)(scans, network) for size in (2, 5)]
        p = network(scans[0].as_tensor().movedim(-1, 0)).softmax(1)
    if smoothing:
        p = torch.from_numpy(gaussian_filter1d(p.numpy(), smoothing / 0.6, axis=0, mode="constant", truncate=3.0))
        p = p / p.sum(1, keepdim=True)
    found = p.argmax(1) > 0
    expected = (-(p * p.log()).sum(1) / math.log(3))[found].mean()
    assert found.any() and not found.all()
    for volumes in labels:
        assert volumes.meta[ENTROPY][0] == pytest.approx(float(expected), rel=1e-4)
        assert volumes.meta[ENTROPY][1].isnan() and not volumes[1].any()
