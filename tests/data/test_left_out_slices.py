"""What `SliceDataset` leaves out: nearly empty slices and unreadable scans; and what it warns of."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from samora_monai.data import LoadUnlabeledd, ScaleScand, ScaleUnlabeledd, ScanScaling, SliceDataset
from samora_monai.errors import MissingFileError
from tests.data.reading import READ, READ_IMAGE, items
from tests.tiny import refused


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
def test_skip_unreadable(tmp_path, write_nifti, caplog, cached):
    good = [{"image": str(write_nifti(tmp_path / f"{name}.nii", np.ones((4, 4, 2), np.float32)))} for name in "ab"]
    (tmp_path / "bad.nii").write_bytes(b"no image")
    bad, gone = ({"image": str(tmp_path / name)} for name in ("bad.nii", "gone.nii"))
    settings = {"image_size": 4} | ({"cache_dir": tmp_path / "cache", "cache_key": "x"} if cached else {})
    for _ in range(2):
        dataset = SliceDataset([good[0], bad, gone, good[1]], READ_IMAGE, skip_unreadable=True, **settings)
        assert (len(dataset), dataset.num_volumes) == (4, 2)
        assert dataset.unreadable == [bad["image"], gone["image"]]
        first, second = caplog.messages
        caplog.clear()
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


def test_skip_unreadable_as_text(tmp_path, write_nifti):
    """As a command line gives it."""
    good = {"image": str(write_nifti(tmp_path / "a.nii", np.ones((4, 4, 2), np.float32)))}
    gone = {"image": str(tmp_path / "gone.nii")}
    assert len(SliceDataset([good, gone], READ_IMAGE, image_size=4, skip_unreadable="true")) == 2
    with pytest.raises((RuntimeError, MissingFileError)):
        SliceDataset([good, gone], READ_IMAGE, image_size=4, skip_unreadable="False")
    with refused("expected true or false for skip_unreadable, got 'yes'"):
        SliceDataset([good], READ_IMAGE, image_size=4, skip_unreadable="yes")


def labelled(tmp_path, write_nifti, *labels):
    """Volumes of ones with these labels."""
    return [
        {
            "image": str(write_nifti(tmp_path / f"{k}.nii", np.ones((4, 4, 3), np.float32))),
            "label": str(write_nifti(tmp_path / f"{k}_label.nii", label)),
        }
        for k, label in enumerate(labels)
    ]


def test_an_empty_label_is_named_in_a_warning(tmp_path, write_nifti, caplog):
    empty = np.zeros((4, 4, 3), np.uint8)
    one = empty.copy()
    one[2, 2, 1] = 1
    data = labelled(tmp_path, write_nifti, one, empty)
    assert len(SliceDataset(data, READ, image_size=4)) == 6
    assert caplog.messages == [f"1 of 2 labels hold only background: '{data[1]['label']}'"]
    caplog.clear()
    gone = {"image": str(tmp_path / "gone.nii"), "label": data[0]["label"]}
    SliceDataset([gone, *data], READ, image_size=4, skip_unreadable=True)
    assert caplog.messages[1:] == [f"1 of 2 labels hold only background: '{data[1]['label']}'"]
    caplog.clear()
    SliceDataset(labelled(tmp_path, write_nifti, one, one), READ, image_size=4)
    SliceDataset([{"image": data[0]["image"]}], READ_IMAGE, image_size=4)
    assert caplog.messages == []


def test_only_empty_labels_are_refused(tmp_path, write_nifti):
    empty = np.zeros((4, 4, 3), np.uint8)
    with refused("none of the 6 slices has a labelled pixel; check the label files"):
        SliceDataset(labelled(tmp_path, write_nifti, empty, empty), READ, image_size=4)


@pytest.mark.parametrize(
    ("modality", "lowest", "warning"),
    [
        ("CT", (0, 12), "values look like MR (no value is below 0 in 2 scans), but modality is CT; use --modality MR"),
        ("CT", (0, -1), None),
        ("CT", (-1024, -1024), None),
        (
            "MR",
            (-1024, -501),
            "values look like CT (values are below -500 in each of 2 scans), but modality is MR; use --modality CT",
        ),
        ("MR", (-1024, -500), None),
        ("MR", (0, 0), None),
    ],
)
@pytest.mark.parametrize("unlabeled", [False, True])
def test_values_of_another_modality(tmp_path, write_nifti, caplog, modality, lowest, warning, unlabeled):
    """A warning if the values of every scan, before scaling, suggest the modality that is not set."""
    ramp = np.arange(48, dtype=np.int16).reshape(4, 4, 3)
    data = [{"image": str(write_nifti(tmp_path / f"{k}.nii", low + ramp))} for k, low in enumerate(lowest)]
    scaling = ScanScaling(modality)
    transform = [LoadUnlabeledd(), ScaleUnlabeledd("image", scaling)]
    dataset = SliceDataset(data, transform if unlabeled else [*READ_IMAGE, ScaleScand("image", scaling)], image_size=4)
    assert len(dataset) == 6
    assert caplog.messages == ([] if warning is None else [warning])


@pytest.mark.parametrize("cached", [False, True])
def test_z_scores_leave_out_the_slices_that_percentiles_do(tmp_path, write_nifti, cached):
    """Under a z-score of their own, the noise of slices of air is as bright as tissue."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 4, (9, 8, 6)).astype(np.float32)
    grey[3:, :, 2:5] += 200  # tissue in three slices
    data, kept = [{"image": str(write_nifti(tmp_path / "a.nii", grey))}], {}
    more = {"cache_dir": tmp_path / "cache"} if cached else {}
    for intensity in ("percentiles", "slice_zscore", "slice_zscore"):
        scaling = ScanScaling("MR", intensity=intensity)
        transform = [LoadUnlabeledd(), ScaleUnlabeledd("image", scaling)]
        dataset = SliceDataset(data, transform, min_content=0.2, image_size=8, cache_key=repr(scaling), **more)
        kept[intensity] = len(dataset), dataset.num_empty, round(float(dataset[0]["image"].mean()), 1)
    assert kept == {"percentiles": (3, 3, 0.7), "slice_zscore": (3, 3, 0.5)}


def test_pictures_suggest_no_modality(tmp_path, write_nifti, caplog):
    Image.fromarray(np.full((4, 4), 700, np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(np.full((4, 4), -700, np.float32)).save(tmp_path / "b.tif")
    for modality in ("CT", "MR"):
        transform = [LoadUnlabeledd(), ScaleUnlabeledd("image", ScanScaling(modality))]
        SliceDataset([{"image": str(tmp_path / name)} for name in ("a.png", "b.tif")], transform, image_size=4)
        SliceDataset([{"image": str(tmp_path / "b.tif")}], transform, image_size=4)
    assert caplog.messages == []
