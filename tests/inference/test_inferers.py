"""Slice-wise inference against one pass of the network over all slices."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from samora_monai.inference import SliceLabelInferer


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_labels_are_the_argmax_of_each_slice(axis: int):
    """Two volumes, the last batch smaller; the labels keep the grid and the affine of the scan."""
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 4, 3, padding=1)
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    volumes, seen = MetaTensor(torch.rand(2, 1, 7, 6, 5), affine=affine), []

    def counted(slices: torch.Tensor) -> torch.Tensor:
        seen.append(len(slices))
        return network(slices)

    labels = SliceLabelInferer(batch_size=4, slice_axis=axis)(volumes, counted)
    assert max(seen) == 4 and sum(seen) == 2 * volumes.shape[axis + 2]
    assert isinstance(labels, MetaTensor) and torch.equal(labels.affine, affine) and labels.dtype == torch.uint8
    for volume, label in zip(volumes.as_tensor(), labels.as_tensor(), strict=True):
        expected = network(volume.movedim(axis + 1, 0)).argmax(1)
        assert torch.equal(label[0].movedim(axis, 0).long(), expected)


@pytest.mark.parametrize("axis", [0, 2])
def test_neighbouring_slices_are_further_channels(axis: int):
    """Across the borders of batches; the slices at the ends of the volume are repeated."""
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 4, 3, padding=1)
    volumes = torch.rand(2, 1, 7, 6, 5)
    labels = SliceLabelInferer(batch_size=2, slice_axis=axis, context=1)(volumes, network)
    for volume, label in zip(volumes, labels, strict=True):
        slices = volume.movedim(axis + 1, 0)  # [Z, 1, X, Y]
        around = [torch.cat((slices[:1], slices[:-1])), slices, torch.cat((slices[1:], slices[-1:]))]
        expected = network(torch.cat(around, 1)).argmax(1)
        assert torch.equal(label[0].movedim(axis, 0).long(), expected)


def test_amp_runs_the_network_in_bfloat16():
    def network(slices: torch.Tensor) -> torch.Tensor:
        logits = torch.nn.functional.conv2d(slices, torch.ones(2, 1, 1, 1))
        types.append(logits.dtype)
        return logits

    types: list[torch.dtype] = []
    for amp in ("true", False):
        SliceLabelInferer(amp=amp)(torch.zeros(1, 1, 4, 4, 2), network)
    assert types == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("axis", [0, 2])
def test_slices_of_air_are_answered_by_one_pass_of_such_a_slice(axis: int):
    """A volume with two of them, one without, and one of air alone; the labels are those of all slices."""
    torch.manual_seed(0)
    network, seen = torch.nn.Conv2d(1, 4, 3, padding=1), []
    volumes = torch.rand(3, 1, 6, 6, 6) + 0.1
    volumes[0].movedim(axis + 1, 0)[[0, 4]] = 0
    volumes[2] = 0

    def counted(slices: torch.Tensor) -> torch.Tensor:
        seen.append(len(slices))
        return network(slices)

    labels = SliceLabelInferer(batch_size=4, slice_axis=axis)(volumes, counted)
    assert seen == [1, 4, 4, 2, 1]
    for volume, label in zip(volumes, labels, strict=True):
        expected = network(volume.movedim(axis + 1, 0)).argmax(1)
        assert torch.equal(label[0].movedim(axis, 0).long(), expected)
    assert labels[2].any(), "the answer for air is the network's, not 0"
