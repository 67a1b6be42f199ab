"""Phantoms: the same for the same seed, a plausible abdomen, and geometry that catches code which ignores it."""

from __future__ import annotations

import itertools
import sys

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirstd
from scipy import ndimage

from samora_monai.data import CheckCased, LoadCased, find_cases, resolve_class_names
from samora_monai.synthetic import phantoms
from samora_monai.synthetic.phantoms import (
    AORTA,
    LEFT_KIDNEY,
    LIVER,
    RIGHT_KIDNEY,
    SPLEEN,
    make_phantom,
    write_phantoms,
)
from samora_monai.synthetic.scanner import acquire
from samora_monai.synthetic.volume import Volume


def test_folder_is_a_data_set(tmp_path):
    datalist = write_phantoms(tmp_path, num_training=2, num_validation=1, num_unlabeled=1, shape=(32, 32, 16))
    cases = find_cases(tmp_path)
    assert cases.source == str(datalist)
    assert (len(cases.training), len(cases.validation), len(cases.unlabeled), cases.modality) == (2, 1, 1, "CT")
    names = resolve_class_names(cases)
    assert names == ("background", "spleen", "right kidney", "left kidney", "liver", "aorta")
    read = Compose([LoadCased(["image", "label"]), EnsureChannelFirstd(["image", "label"])])
    for case in cases.training + cases.validation:
        item = CheckCased("image", num_classes=len(names))(read(dict(case)))
        assert set(np.unique(item["label"])) == set(range(6))
        assert -1000 <= item["image"].min() < -900
        assert item["image"].max() > 300


def test_deterministic():
    for case in (1, 3):
        first, second, other = (
            make_phantom(case, (24, 24, 12)),
            make_phantom(case, (24, 24, 12)),
            make_phantom(case, (24, 24, 12), 1),
        )
        for one, same in zip(first, second, strict=True):
            np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(same.dataobj))
            np.testing.assert_array_equal(one.affine, same.affine)
        assert not np.array_equal(first[0].affine, other[0].affine)


def test_geometries_differ():
    images = [make_phantom(case, (16, 16, 12))[0] for case in range(1, 7)]
    assert len({nib.aff2axcodes(image.affine) for image in images}) == 6
    assert len({tuple(image.header.get_zooms()) for image in images}) == 6
    for case, image in enumerate(images, 1):
        largest = np.abs(image.affine[:3, :3] / image.header.get_zooms()).max(axis=0)
        assert (largest.min() < 0.995) == (case % 3 == 0)  # oblique
        assert np.abs(image.affine[:3, 3]).max() > 10


@pytest.mark.parametrize("case", [1, 2, 3, 4])
def test_anatomy(case):
    """Liver on the patient's right, spleen on the left, kidneys either side of the aorta, each of its size."""
    _, label = make_phantom(case)
    array = np.asarray(label.dataobj)
    size = np.bincount(array.ravel(), minlength=6)
    assert size[LIVER] == size[1:].max()
    assert size[1:].min() > 800
    canonical = nib.as_closest_canonical(label)
    voxels = np.asarray(canonical.dataobj)
    center = {k: np.argwhere(voxels == k).mean(axis=0) for k in range(1, 6)}
    assert center[SPLEEN][0] < center[LEFT_KIDNEY][0] + 5
    assert center[LEFT_KIDNEY][0] < center[AORTA][0] < center[RIGHT_KIDNEY][0]
    assert center[SPLEEN][0] < center[AORTA][0] < center[LIVER][0]
    assert center[LIVER][2] > center[RIGHT_KIDNEY][2]
    area = (voxels == AORTA).sum(axis=(0, 1)).max()
    assert 7 < 2 * np.sqrt(area / np.pi) < 13  # aorta, pixels across


def test_no_threshold_finds_the_organs():
    """Aorta and vena cava, spleen and bowel overlap in density: an organ's own HU band is mostly other tissue."""
    image, label = (np.asarray(nifti.dataobj) for nifti in make_phantom(1))
    for organ in (SPLEEN, AORTA, RIGHT_KIDNEY):
        low, high = np.percentile(image[label == organ], [10, 90])
        band = (image >= low) & (image <= high)
        dice = 2 * (band & (label == organ)).sum() / (band.sum() + (label == organ).sum())
        assert dice < 0.6


def case_arrays(case: int) -> tuple[np.ndarray, np.ndarray]:
    """Image in HU and label on a RAS grid."""
    image, label = (nib.as_closest_canonical(nifti) for nifti in make_phantom(case))
    return image.get_fdata(), np.asarray(label.dataobj)


def test_no_two_cases_are_alike():
    """Organs differ in size, place and density."""
    cases = [case_arrays(case) for case in range(1, 6)]
    depth = min(label.shape[2] for _, label in cases)
    for pair in itertools.combinations(cases, 2):
        for organ in range(1, 6):
            one, other = ((label == organ)[..., -depth:] for _, label in pair)
            assert 2 * (one & other).sum() / (one.sum() + other.sum()) < 0.9
    for organ in (SPLEEN, LIVER, AORTA):
        assert np.ptp([np.median(image[label == organ]) for image, label in cases]) > 5


@pytest.mark.parametrize("case", [1, 2, 3, 4])
def test_it_shows_what_ct_shows(case: int):
    """Air in lungs or bowel, fat, soft tissue and bone in the body, and organs with texture and one smooth outline."""
    image, label = case_arrays(case)
    body = ndimage.binary_opening(image > -250, iterations=2)
    body = ndimage.binary_fill_holes(body, np.ones((3, 3, 1)))  # in each slice
    share = {
        name: ((image > low) & (image < high) & body).sum() / body.sum()
        for name, low, high in (("air", -1100, -600), ("fat", -150, -50), ("soft", 0, 200), ("bone", 300, 2000))
    }
    assert 0.002 < share["air"] < 0.1 and 0.2 < share["fat"] < 0.55
    assert 0.3 < share["soft"] < 0.7 and 0.005 < share["bone"] < 0.08
    for organ in range(1, 6):
        part = label == organ
        pieces, number = ndimage.label(part)
        assert ndimage.sum(part, pieces, range(1, number + 1)).max() > 0.95 * part.sum()
        core = ndimage.binary_erosion(part, iterations=2)
        assert 6 < image[core].std() < 45  # vessels, texture, noise
        opened = ndimage.binary_opening(part, ndimage.generate_binary_structure(3, 1))
        assert opened.sum() > 0.85 * part.sum()


def test_noise_is_stronger_in_the_centre_and_correlated():
    """In a volume of one tissue; without the slow waves of beam hardening."""
    v = Volume((96, 96, 16), np.random.default_rng(0))
    v.hu[:] = 40
    noise = acquire(v, np.ones((96, 96, 16), np.float32)) - 40
    noise -= ndimage.gaussian_filter(noise, 4)
    center, rim = noise[40:56, 40:56], noise[:16, :16]
    assert 1.5 < center.std() / rim.std() < 3.5
    beside = np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1]
    apart = np.corrcoef(noise[6:].ravel(), noise[:-6].ravel())[0, 1]
    assert 0.2 < beside < 0.8 and abs(apart) < 0.2


def test_borders_are_partial_volumes():
    """A voxel that a surface halves has the mean of both sides, and the label of the larger part."""
    v = Volume((64, 64, 8), np.random.default_rng(0))
    distance = np.broadcast_to(np.linspace(-1, 1, 64)[:, None, None], (64, 64, 8)) - 0.0159  # a plane in voxel 32
    v.paint(distance, 1000, 3)
    assert set(v.label[31].ravel()) == {3} and set(v.label[33].ravel()) == {0}
    assert v.hu[32, 0, 0] == pytest.approx(0, abs=30)
    assert v.hu[30, 0, 0] == 1000 and v.hu[34, 0, 0] == -1000


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["phantoms", str(tmp_path), "--training", "1", "--validation", "0", "--seed", "5"])
    phantoms.main()
    assert capsys.readouterr().out.strip() == str(tmp_path / "dataset.json")
    assert len(find_cases(tmp_path).training) == 1
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["phantoms", str(tmp_path / "file")])
    with pytest.raises(SystemExit, match=r"^cannot write to output folder '.*/file'"):
        phantoms.main()
