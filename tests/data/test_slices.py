"""Slices of volumes: exact values, the choice of slices, and safety of what is stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import RandScaleIntensityd
from monai.utils import set_determinism

from samora_monai.data import SliceDataset
from samora_monai.errors import InputError
from tests.data.reading import READ, READ_IMAGE, items


def triangle_weights(old, new):
    """Anti-aliased linear resizing as a matrix `[new, old]`: a triangle around each new pixel's centre."""
    scale = old / new
    width = max(scale, 1)
    centers = (np.arange(new) + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(old) + 0.5 - centers[:, None]) / width)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("axis", "size"), [(2, 8), (2, 20), (0, 8), (1, 8)])
def test_items_equal_the_literal_resizing(volumes, axis, size):
    data, arrays = volumes
    dataset = SliceDataset(data, READ, image_size=size, slice_axis=axis)
    expected = []
    for image, label in arrays:
        for k in range(image.shape[axis]):
            plane = image.take(k, axis)
            mask = label.take(k, axis)
            rows, columns = (triangle_weights(old, size) for old in plane.shape)
            near = [((np.arange(size) + 0.5) * old / size).astype(int) for old in plane.shape]
            expected.append((rows @ plane @ columns.T, mask[np.ix_(*near)]))
    assert len(dataset) == dataset.num_slices_total == len(expected)
    assert dataset.num_volumes == 2
    assert dataset.nbytes == len(expected) * size * size * 5
    assert dataset.data is data
    for item, (image, label) in zip(items(dataset), expected, strict=True):
        assert (item["image"].dtype, item["label"].dtype) == (torch.float32, torch.uint8)
        np.testing.assert_allclose(item["image"][0], image, atol=2e-6)
        np.testing.assert_array_equal(item["label"][0], label)


def test_slices_of_the_right_size_are_not_touched(tmp_path, write_nifti):
    image = np.random.default_rng(0).random((8, 8, 3), dtype=np.float32)
    dataset = SliceDataset([{"image": str(write_nifti(tmp_path / "a.nii", image))}], READ_IMAGE, image_size=8)
    for k, item in enumerate(items(dataset)):
        assert set(item) == {"image"}  # no label: self-supervised training
        assert item["image"].is_contiguous()
        np.testing.assert_array_equal(item["image"].numpy()[0], image[..., k])


def test_fraction_is_seeded_and_pooled(volumes):
    data, _ = volumes
    every = [item["image"] for item in items(SliceDataset(data, READ, image_size=8))]

    def kept(fraction, seed):
        dataset = SliceDataset(data, READ, image_size=8, slice_fraction=fraction, seed=seed)
        chosen = [item["image"] for item in items(dataset)]
        return [next(i for i, image in enumerate(every) if torch.equal(image, one)) for one in chosen]

    assert kept(0.4, 0) == kept(0.4, 0)
    assert len(kept(0.4, 0)) == 4  # of 6 + 4
    assert len({tuple(kept(0.4, seed)) for seed in range(8)}) > 4
    assert set().union(*(kept(0.4, seed) for seed in range(30))) == set(range(10))
    assert set(kept(0.3, 1)) <= set(kept(0.6, 1))  # a larger fraction adds slices
    assert len(kept(0.001, 0)) == 1


def test_foreground_only(volumes):
    data, _ = volumes
    dataset = SliceDataset(data, READ, image_size=8, foreground_only=True)
    assert (len(dataset), dataset.num_slices_total) == (3, 10)
    assert all(item["label"].any() for item in items(dataset))
    assert len(SliceDataset(data, READ, image_size=8, foreground_only=True, slice_fraction=0.34)) == 1


def test_in_place_transform_cannot_change_what_is_stored(volumes):
    def wipe(item):
        item["image"].zero_()
        item["label"].fill_(9)
        return item

    data, _ = volumes
    clean, wiped = SliceDataset(data, READ, image_size=8), SliceDataset(data, READ, wipe, image_size=8)
    assert not wiped[2]["image"].any()
    wiped.transform = clean.transform
    for first, second in zip(items(clean), items(wiped), strict=True):
        assert torch.equal(first["image"], second["image"])
        assert torch.equal(first["label"], second["label"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_random_transforms_are_reproducible_and_differ_between_workers(tmp_path, write_nifti, num_workers):
    data = [{"image": str(write_nifti(tmp_path / "a.nii", np.ones((4, 4, 8), np.float32)))}]
    dataset = SliceDataset(data, READ_IMAGE, RandScaleIntensityd("image", factors=0.9, prob=1.0), image_size=4)

    def epoch():
        set_determinism(3)
        loader = DataLoader(dataset, batch_size=1, num_workers=num_workers)
        return [float(batch["image"].mean()) for batch in loader]

    try:
        first, second = epoch(), epoch()
    finally:
        set_determinism(None)
    assert first == second
    assert len(set(first)) == 8
    assert type(dataset[0]["image"]) is torch.Tensor


def test_refused(tmp_path, write_nifti):
    with pytest.raises(InputError, match="there are no scans to take slices from; check --dataset_dir"):
        SliceDataset([], READ)
    data = [{"image": str(write_nifti(tmp_path / "a.nii")), "label": str(write_nifti(tmp_path / "l.nii"))}]
    for fraction in (0, 1.5, -1):
        with pytest.raises(InputError, match=f"slice_fraction must be above 0 and at most 1, got {fraction}"):
            SliceDataset(data, READ, slice_fraction=fraction)
    with pytest.raises(InputError, match="none of the 3 slices has a labelled pixel; check the label files"):
        SliceDataset(data, READ, image_size=4, foreground_only=True)
    with pytest.raises(InputError, match=r"foreground_only needs a label, but '.*a.nii' has none"):
        SliceDataset(data, READ_IMAGE, image_size=4, foreground_only=True)


def test_an_unreadable_scan_is_named(tmp_path):
    """MONAI's `Compose` wraps what a transform raises; the sentence is at the end of the chain of causes."""
    (tmp_path / "bad.nii").write_bytes(b"no image")
    with pytest.raises(RuntimeError) as raised:
        SliceDataset([{"image": str(tmp_path / "bad.nii")}], READ_IMAGE)
    assert isinstance(raised.value.__cause__, InputError)
    assert "bad.nii" in str(raised.value.__cause__)


def test_half_is_half_the_memory_and_nearly_the_same(volumes):
    data, _ = volumes
    full, half = SliceDataset(data, READ, image_size=8), SliceDataset(data, READ, image_size=8, half=True)
    assert (full.nbytes, half.nbytes) == (10 * 64 * 5, 10 * 64 * 3)  # the labels stay as they are
    for one, other in zip(items(full), items(half), strict=True):
        assert other["image"].dtype == torch.float32
        assert 0 < float((one["image"] - other["image"]).abs().max()) < 2.0**-11
        assert torch.equal(one["label"], other["label"])
