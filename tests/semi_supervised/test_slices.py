"""The unlabelled scans of a run, the two views of their slices, and their pairs with labelled slices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import DataLoader, set_rnd
from monai.transforms import (
    EnsureChannelFirstd,
    Orientationd,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    Randomizable,
    ScaleIntensityRanged,
)

from samora_monai.data import Cases, LoadCased, ScaleScand, ScanScaling, SliceDataset, find_cases
from samora_monai.semi_supervised import PairedSlices, TwoViews, default_decay, pair, unlabeled_slices
from samora_monai.semi_supervised.scans import unlabeled_scans
from samora_monai.synthetic.phantoms import write_phantoms
from tests.tiny import refused


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, num_training=3, num_validation=1, shape=(32, 32, 4))
    return folder


def names(unlabeled: Any, cases: Cases, dataset_dir: Path, modality: str = "CT") -> list[str]:
    """The file names of the scans that are found."""
    found = unlabeled_scans(unlabeled, cases, dataset_dir, "dataset.json", modality)
    return [Path(item["image"]).name for item in found]


def transforms() -> list[Any]:
    """Two that move pixels, and three that change grey values."""
    return [
        RandAdjustContrastd(keys="image", prob=1.0, gamma=(2, 3)),
        RandAffined(keys=["image", "label"], prob=1.0, rotate_range=0.5, mode=["bilinear", "nearest"]),
        RandGaussianNoised(keys="image", prob=1.0, std=0.1),
        RandFlipd(keys=["image", "label"], prob=0.5, spatial_axis=0),
        ScaleIntensityRanged(keys="image", a_min=0.0, a_max=1.0, b_min=0.0, b_max=1.0, clip=True),
    ]


def test_scans_that_the_run_has_labels_of_are_left_out(phantoms: Path, tmp_path: Path):
    cases = find_cases(phantoms, num_labeled=1)
    assert names(phantoms, cases, phantoms) == ["phantom_002.nii.gz", "phantom_003.nii.gz"]
    shutil.copy(phantoms / "imagesTr" / "phantom_003.nii.gz", tmp_path / "other.nii.gz")
    (tmp_path / "link.nii.gz").symlink_to(phantoms / "imagesVal" / "phantom_004.nii.gz")
    assert names(str(tmp_path), cases, phantoms) == ["other.nii.gz"]
    assert sorted(names([tmp_path, phantoms], cases, phantoms)) == [
        "other.nii.gz",
        "phantom_002.nii.gz",
        "phantom_003.nii.gz",
    ]


def test_true_is_the_list_of_the_datalist(phantoms: Path, tmp_path: Path):
    lists = json.loads((phantoms / "dataset.json").read_text())
    first, *rest = lists["training"]
    lists |= {"training": [first], "unlabeled": [{"image": case["image"]} for case in rest[:1]]}
    shutil.copytree(phantoms, tmp_path, dirs_exist_ok=True)
    (tmp_path / "dataset.json").write_text(json.dumps(lists))
    cases = find_cases(tmp_path)
    assert names(True, cases, tmp_path) == names("true", cases, tmp_path) == ["phantom_002.nii.gz"]


def test_refuses_what_cannot_be_learned_from(phantoms: Path, tmp_path: Path):
    cases = find_cases(phantoms)
    with refused("has no scan without a label for this run", "--unlabeled FOLDER"):
        names(phantoms, cases, phantoms)
    with refused("has no scan without a label for this run", "--unlabeled true"):
        names("true", cases, phantoms)
    with refused("states that the scans are CT", "--modality CT"):
        names(phantoms, find_cases(phantoms, num_labeled=1), phantoms, modality="MR")
    with refused("does not exist"):
        names(tmp_path / "nowhere", cases, phantoms)
    shutil.copy(phantoms / "imagesVal" / "phantom_004.nii.gz", tmp_path / "other_name.nii.gz")
    with refused("other_name.nii.gz' of the unlabelled scans is a copy of", "phantom_004.nii.gz' in validation"):
        names(tmp_path, cases, phantoms)


@pytest.mark.parametrize("unlabeled", [None, False, "false", "none", ""])
def test_off_there_is_neither_a_scan_nor_a_teacher(unlabeled: Any):
    cases = Cases((), (), (), None, None, "")
    assert unlabeled_slices(unlabeled, cases, "", "", ScanScaling(), []) is None
    assert default_decay(unlabeled) is None and default_decay("folder") == 0.99


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_cut_and_scaled_as_labelled_ones(phantoms: Path, axis: int):
    """Of the same scan, in float16."""
    scaling = ScanScaling(window=(-100, 200), slice_axis=axis)
    cases = find_cases(phantoms, num_labeled=2)
    found = unlabeled_slices(phantoms, cases, phantoms, "dataset.json", scaling, [], image_size=32, half=True)
    assert found is not None and found.num_volumes == 1
    read = [
        LoadCased("image"),
        EnsureChannelFirstd("image"),
        Orientationd("image", axcodes="RAS", labels=None),
        ScaleScand("image", scaling),
    ]
    labelled = SliceDataset(found.data, read, image_size=32, slice_axis=axis)
    assert len(found) == len(labelled)
    for one, other in zip(found, labelled, strict=True):
        torch.testing.assert_close(one["image"], other["image"], atol=1e-3, rtol=0)
        assert torch.equal(one["image"], one["weak"])


def test_views_are_moved_alike_and_only_the_strong_one_changes_its_grey_values():
    slices = {"image": (torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.5).float()}
    views = TwoViews(transforms())
    views.set_random_state(0)
    item = views(slices)
    assert list(item) == ["image", "weak"]
    moved = TwoViews([transform for transform in transforms() if "label" in transform.keys])
    moved.set_random_state(0)
    expected = moved(slices)
    assert torch.equal(expected["image"], expected["weak"]) and torch.equal(item["weak"], expected["weak"])
    assert not torch.equal(item["weak"], slices["image"]) and not torch.equal(item["image"], item["weak"])
    strong, weak = (item[key].flatten() - item[key].mean() for key in ("image", "weak"))
    assert float(strong @ weak / (strong.norm() * weak.norm())) > 0.8  # the same places
    again = TwoViews(transforms())
    again.set_random_state(0)
    torch.testing.assert_close(again(slices), item, rtol=0, atol=0)


def paired(phantoms: Path) -> PairedSlices:
    cases = find_cases(phantoms, num_labeled=1)
    options: dict[str, Any] = {"image_size": 32}
    unlabeled = unlabeled_slices(phantoms, cases, phantoms, "dataset.json", ScanScaling(), transforms(), **options)
    labelled = unlabeled_slices(
        phantoms / "imagesVal" / "phantom_004.nii.gz",
        Cases((), (), (), None, None, ""),
        phantoms,
        "dataset.json",
        ScanScaling(),
        [],
        **options,
    )
    assert labelled is not None and pair(labelled, None) is labelled
    both = pair(labelled, unlabeled)
    assert isinstance(both, PairedSlices) and len(both) == len(labelled)
    return both


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_pairs_repeat_with_their_seed_alone(phantoms: Path, workers: int):
    def draw(seed: int) -> dict[str, torch.Tensor]:
        data = paired(phantoms)
        torch.manual_seed(seed)
        set_rnd(data, seed)
        return next(iter(DataLoader(data, batch_size=4, num_workers=workers)))

    first = draw(0)
    assert sorted(first) == ["image", "unlabeled", "weak"]
    torch.testing.assert_close(draw(0), first, rtol=0, atol=0)
    other = draw(1)
    assert torch.equal(other["image"], first["image"]) and not torch.equal(other["weak"], first["weak"])


def test_each_unlabelled_slice_comes_up(phantoms: Path):
    data = paired(phantoms)
    assert isinstance(data, Randomizable)
    data.unlabeled.transform = lambda item: item | {"weak": item["image"]}
    data.set_random_state(0)
    drawn = {tuple(data[0]["weak"].flatten().tolist()) for _ in range(200)}
    kept = {tuple(volume.item(i)["image"].flatten().tolist()) for volume, i in data.unlabeled._index}
    assert drawn == kept
