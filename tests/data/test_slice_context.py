"""Neighbouring slices as channels: they come from the volume, whichever slices are kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandAffined

from samora_monai.data import SliceDataset
from samora_monai.data.slice_reader import neighbours
from tests.data.reading import READ, READ_IMAGE, items
from tests.tiny import refused

SIZE = 8
STACKS = [(0, 0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (4, 5, 5)]  # of six slices


def test_neighbours_repeat_the_ends():
    assert list(map(tuple, neighbours(6, 1))) == STACKS
    assert neighbours(3, 0).tolist() == [[0], [1], [2]]
    assert neighbours(1, 1).tolist() == [[0, 0, 0]]
    assert neighbours(2, 2).tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]]


@pytest.mark.parametrize("axis", [0, 2])
def test_channels_are_the_slices_around(volumes, axis):
    """No volume gives a neighbour to another; the label stays that of the middle slice."""
    data, arrays = volumes
    alone = items(SliceDataset(data, READ, image_size=SIZE, slice_axis=axis))
    around = items(SliceDataset(data, READ, image_size=SIZE, slice_axis=axis, context=1))
    positions, first = [], 0
    for image, _ in arrays:
        count = image.shape[axis]
        positions += [[first + min(max(k + o, 0), count - 1) for o in (-1, 0, 1)] for k in range(count)]
        first += count
    assert len(alone) == len(around) == len(positions)
    for own, item, stack in zip(alone, around, positions, strict=True):
        assert torch.equal(item["image"], torch.cat([alone[k]["image"] for k in stack]))
        assert torch.equal(item["label"], own["label"])


def test_neighbours_that_are_left_out_are_still_seen(volumes):
    """And no more is kept in memory than the kept slices and their neighbours."""
    data, _ = volumes
    every = items(SliceDataset(data[:1], READ, image_size=SIZE, context=1))
    foreground = SliceDataset(data[:1], READ, image_size=SIZE, context=1, foreground_only=True)  # slices 2 and 3
    assert len(foreground) == 2 and foreground.nbytes == SIZE * SIZE * (4 * 4 + 2)
    for item, other in zip(items(foreground), every[2:4], strict=True):
        assert torch.equal(item["image"], other["image"]) and torch.equal(item["label"], other["label"])
    (one,) = items(SliceDataset(data[:1], READ, image_size=SIZE, context=1, foreground_only=True, slice_fraction=0.5))
    assert any(torch.equal(one["image"], item["image"]) for item in every[2:4])


@pytest.mark.parametrize("half", [False, True])
def test_a_cache_serves_any_context(volumes, tmp_path, half):
    """The file holds each slice once, and is not written again."""
    scans = [{"image": item["image"]} for item in volumes[0]]
    settings = {"image_size": SIZE, "half": half, "min_content": 0.1}
    cached = settings | {"cache_dir": tmp_path / "cache", "cache_key": "CT"}
    SliceDataset(scans, READ_IMAGE, **cached)
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    plain, dataset = (SliceDataset(scans, READ_IMAGE, context=1, **more) for more in (settings, cached))
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()} == files
    for one, other in zip(items(plain), items(dataset), strict=True):
        assert other["image"].shape == (3, SIZE, SIZE) and torch.equal(one["image"], other["image"])


def test_one_random_affine_moves_the_slice_its_neighbours_and_its_label(tmp_path, write_nifti):
    label = np.random.default_rng(0).integers(0, 2, (SIZE, SIZE, 1)).repeat(3, 2).astype(np.uint8)
    data = [
        {
            "image": str(write_nifti(tmp_path / "a.nii", label.astype(np.float32))),
            "label": str(write_nifti(tmp_path / "l.nii", label)),
        }
    ]
    move = RandAffined(["image", "label"], prob=1.0, rotate_range=0.5, mode="nearest", padding_mode="zeros")
    move = Compose([move]).set_random_state(0)  # the dataset gives a bare transform a state of chance
    item = SliceDataset(data, READ, move, image_size=SIZE, context=1)[1]
    assert not torch.equal(item["label"][0], torch.from_numpy(label[..., 1]).to(item["label"]))
    assert all(torch.equal(channel, item["label"][0].float()) for channel in item["image"])


def test_a_context_that_counts_no_slices_is_refused(volumes):
    for wrong in (-1, 0.5, True):
        with refused("context must be a number of neighbouring slices, 0 or more"):
            SliceDataset(volumes[0], READ, context=wrong)
