"""Slices of volumes: exact values, the choice of slices, and safety of what is stored."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import EnsureChannelFirstd, RandScaleIntensityd
from monai.utils import set_determinism

from samora_monai.data import LoadCased, SliceDataset, slice_cache
from samora_monai.errors import InputError, MissingFileError
from tests.tiny import refused

READ = (LoadCased(["image", "label"]), EnsureChannelFirstd(["image", "label"]))
READ_IMAGE = (LoadCased("image"), EnsureChannelFirstd("image"))


def items(dataset):
    return [dataset[i] for i in range(len(dataset))]


@pytest.fixture
def volumes(tmp_path, write_nifti):
    """Two volumes of different shape in [0, 1]; the label is on the slices 2 and 3 of the first, 0 of the second."""
    rng = np.random.default_rng(0)
    arrays, data = [], []
    for name, shape, slices in (("a", (10, 14, 6), (2, 3)), ("b", (13, 9, 4), (0,))):
        image = rng.random(shape, dtype=np.float32)
        label = np.zeros(shape, np.uint8)
        for k in slices:
            label[..., k] = rng.integers(0, 4, shape[:2])
        arrays.append((image, label))
        data.append(
            {
                "image": str(write_nifti(tmp_path / f"{name}.nii.gz", image)),
                "label": str(write_nifti(tmp_path / f"{name}_l.nii.gz", label)),
            }
        )
    return data, arrays


def triangle_weights(old, new):
    """Anti-aliased linear resizing as a matrix `[new, old]`: a triangle around each new pixel's centre."""
    scale = old / new
    width = max(scale, 1)
    centers = (np.arange(new) + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(old) + 0.5 - centers[:, None]) / width)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("axis", "size"), [(-1, 8), (3, 20), (1, 8), (-2, 8)])
def test_items_equal_the_literal_resizing(volumes, axis, size):
    data, arrays = volumes
    dataset = SliceDataset(data, READ, image_size=size, slice_axis=axis)
    expected = []
    for image, label in arrays:
        for k in range(image.shape[axis - 1 if axis > 0 else axis]):
            plane = image.take(k, axis - 1 if axis > 0 else axis)
            mask = label.take(k, axis - 1 if axis > 0 else axis)
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


def test_nearly_empty_slices_are_left_out_and_counted(tmp_path, write_nifti):
    """A slice stays if at least the given part of its pixels, after resizing, is above 0.1."""
    image = np.zeros((10, 10, 5), np.float32)
    image[:, 0, 1] = 0.11  # a tenth of the pixels
    image[..., 2] = 0.1  # background, however much of it
    image[:5, :, 3] = image[..., 4] = 0.5
    data = [{"image": str(write_nifti(tmp_path / f"{name}.nii", image))} for name in "ab"]
    settings = {"image_size": 10, "cache_key": "x"}
    for more in ({}, {"cache_dir": tmp_path / "cache"}, {"cache_dir": tmp_path / "cache"}):  # and from the cache
        for min_content, kept in ((0, 10), (0.01, 6), (0.1, 6), (0.2, 4), (0.5, 4), (0.6, 2), (1, 2)):
            dataset = SliceDataset(data, READ_IMAGE, min_content=min_content, **settings, **more)
            assert (len(dataset), dataset.num_empty, dataset.num_slices_total) == (kept, 10 - kept, 10)
        assert [float(item["image"].mean()) for item in items(dataset)] == [0.5, 0.5]
        half = SliceDataset(data, READ_IMAGE, min_content=0.2, slice_fraction=0.5, **settings, **more)
        assert len(half) == 2  # of the four that have content
        assert min(float(item["image"].mean()) for item in items(half)) >= 0.25
    with refused("each of the 3 slices has less than 0.5 of its pixels above 0.1; use a lower --min_content"):
        SliceDataset([{"image": str(write_nifti(tmp_path / "c.nii"))}], READ_IMAGE, image_size=4, min_content=0.5)
    for wrong in (-0.1, 1.5):
        with refused(f"min_content must be a part of the pixels from 0 to 1, got {wrong}"):
            SliceDataset(data, READ_IMAGE, min_content=wrong)


@pytest.mark.parametrize("cached", [False, True])
def test_skip_unreadable(tmp_path, write_nifti, capsys, cached):
    good = [{"image": str(write_nifti(tmp_path / f"{name}.nii", np.ones((4, 4, 2), np.float32)))} for name in "ab"]
    (tmp_path / "bad.nii").write_bytes(b"no image")
    bad, gone = ({"image": str(tmp_path / name)} for name in ("bad.nii", "gone.nii"))
    settings = {"image_size": 4} | ({"cache_dir": tmp_path / "cache", "cache_key": "x"} if cached else {})
    for _ in range(2):
        dataset = SliceDataset([good[0], bad, gone, good[1]], READ_IMAGE, skip_unreadable=True, **settings)
        assert (len(dataset), dataset.num_volumes) == (4, 2)
        assert dataset.unreadable == [bad["image"], gone["image"]]
        first, second = capsys.readouterr().out.splitlines()
        assert first.startswith(f"left out: cannot read '{bad['image']}': ")
        assert second.startswith("left out: ") and f"'{gone['image']}' does not exist" in second
    assert SliceDataset(good, READ_IMAGE, **settings).unreadable == []
    with refused(f"none of 2 scans could be read; the first: cannot read '{bad['image']}'"):
        SliceDataset([bad, gone], READ_IMAGE, skip_unreadable=True, **settings)
    with pytest.raises((RuntimeError, MissingFileError)):  # without it the run stops
        SliceDataset([*good, gone], READ_IMAGE, **settings)


def test_only_a_users_mistake_is_skipped(tmp_path, write_nifti):
    def broken(item):
        raise KeyError("a bug")

    data = [{"image": str(write_nifti(tmp_path / "a.nii"))}]
    with pytest.raises(RuntimeError, match="broken"):
        SliceDataset(data, broken, skip_unreadable=True)


def test_half_is_half_the_memory_and_nearly_the_same(volumes):
    data, _ = volumes
    full, half = SliceDataset(data, READ, image_size=8), SliceDataset(data, READ, image_size=8, half=True)
    assert (full.nbytes, half.nbytes) == (10 * 64 * 5, 10 * 64 * 3)  # the labels stay as they are
    for one, other in zip(items(full), items(half), strict=True):
        assert other["image"].dtype == torch.float32
        assert 0 < float((one["image"] - other["image"]).abs().max()) < 2.0**-11
        assert torch.equal(one["label"], other["label"])


class Counting:
    """The transforms of a scan, and the scans that they read."""

    def __init__(self):
        self.names = []

    def __call__(self, item):
        self.names.append(Path(item["image"]).name)
        for transform in READ_IMAGE:
            item = transform(item)
        return item


@pytest.fixture
def cached(tmp_path, volumes):
    """Two scans without labels, and a data set of them that is cached by default."""
    scans = [{"image": item["image"]} for item in volumes[0]]

    def make(read=None, data=scans, **settings):
        settings = {"image_size": 8, "cache_dir": tmp_path / "cache" / "deep", "cache_key": "CT"} | settings
        return SliceDataset(data, READ_IMAGE if read is None else read, **settings)

    return make


@pytest.mark.parametrize("half", [False, True])
def test_two_data_sets_share_the_cache(cached, tmp_path, half):
    """The same items as from memory; the second data set reads no scan, and holds nothing."""
    first, second = Counting(), Counting()
    plain = items(cached(half=half, cache_dir=None))
    datasets = [cached(first, half=half), cached(second, half=half)]
    assert (first.names, second.names) == (["a.nii.gz", "b.nii.gz"], [])
    for dataset in (*datasets, pickle.loads(pickle.dumps(cached(half=half)))):
        assert (len(dataset), dataset.num_volumes, dataset.num_slices_total, dataset.nbytes) == (10, 2, 10, 0)
        for one, other in zip(plain, items(dataset), strict=True):
            assert set(other) == {"image"}
            assert other["image"].dtype == torch.float32
            assert torch.equal(one["image"], other["image"])
    files = sorted((tmp_path / "cache" / "deep").iterdir())
    assert len(files) == 4 and not [file for file in files if file.name.startswith(".")]
    slices = np.load(next(file for file in files if not file.stem.endswith("_content")), mmap_mode="r")
    assert slices.dtype == (np.float16 if half else np.float32)
    datasets[0][0]["image"].fill_(9)  # items are copies
    assert torch.equal(datasets[0][0]["image"], plain[0]["image"])


def test_a_changed_scan_or_setting_is_read_again(cached, tmp_path, write_nifti, monkeypatch):
    def read_by(**settings):
        counting = Counting()
        dataset = cached(counting, **settings)
        return counting.names, dataset

    assert read_by()[0] == ["a.nii.gz", "b.nii.gz"]
    for settings in ({"cache_key": "MR"}, {"image_size": 9}, {"slice_axis": 1}, {"half": True}):
        assert len(read_by(**settings)[0]) == 2
        assert read_by(**settings)[0] == []
    # what is chosen among the slices is no reason to read them again
    assert read_by(slice_fraction=0.5, min_content=0.1, seed=7)[0] == []
    os.utime(tmp_path / "b.nii.gz", (1, 1))
    assert read_by()[0] == ["b.nii.gz"]
    write_nifti(tmp_path / "a.nii.gz", np.full((8, 8, 3), 0.25, np.float32))
    names, dataset = read_by()
    assert (names, len(dataset), float(dataset[0]["image"].mean())) == (["a.nii.gz"], 7, 0.25)
    assert read_by()[0] == []
    monkeypatch.setattr(slice_cache, "__version__", "99")
    assert len(read_by()[0]) == 2


def test_parts_of_a_scan_are_watched(tmp_path):
    """The files of a DICOM folder, and the values beside an `.mhd` header."""
    cache = slice_cache.SliceCache(tmp_path / "cache", "x")
    for scan, part in (("series", "series/IM_2"), ("a.mhd", "a.raw")):
        (tmp_path / "series").mkdir(exist_ok=True)
        for name in ("series/IM_1", "series/IM_2", "a.mhd", "a.raw", "b.raw"):
            (tmp_path / name).write_bytes(b"x")
        before = cache.file_of(tmp_path / scan)
        os.utime(tmp_path / "b.raw", (1, 1))
        assert cache.file_of(tmp_path / scan) == before
        (tmp_path / part).write_bytes(b"xx")
        assert cache.file_of(tmp_path / scan) != before


def test_cached_slices_reach_workers(cached):
    loader = DataLoader(cached(), batch_size=5, num_workers=2)
    expected = torch.stack([item["image"] for item in items(cached(cache_dir=None))])
    assert torch.equal(torch.cat([batch["image"] for batch in loader]), expected)


def test_an_interrupted_write_leaves_nothing_that_is_taken_for_slices(cached, tmp_path, monkeypatch):
    def full(stream, array):
        stream.write(b"half an array")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(slice_cache.np, "save", full)
    for skip in (False, True):  # a full disk is no unreadable scan
        with refused("cannot write to cache folder '", "No space left on device", "choose another with --cache_dir"):
            cached(skip_unreadable=skip)
    assert list((tmp_path / "cache" / "deep").iterdir()) == []
    monkeypatch.undo()
    assert len(cached()) == 10


def test_cache_refused(cached, volumes, tmp_path):
    with refused("cache_dir is for scans without labels"):
        cached(data=volumes[0])
    for key in (None, ""):
        with refused("cache_dir needs a cache_key"):
            cached(cache_key=key)
    (tmp_path / "file").write_text("")
    with refused("cannot create cache folder '", "choose another with --cache_dir"):
        cached(cache_dir=tmp_path / "file" / "cache")
    cached()
    for file in (tmp_path / "cache" / "deep").iterdir():
        file.write_bytes(b"rotten")
    with refused("cannot read cached slices '", "remove them to make them anew"):
        cached()
