"""Slices that are kept on disk: shared between data sets, read again after a change, never half written."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import DataLoader

from samora_monai.data import SliceDataset, slice_cache
from tests.data.reading import READ_IMAGE, items
from tests.tiny import refused


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
    with refused("cannot read cached slices '", "remove the file to create it again"):
        cached()
