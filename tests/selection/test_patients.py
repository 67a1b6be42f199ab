"""Scans of one patient: by names, by DICOM headers, by anatomy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from samora_monai.selection import Anatomy, patients_of
from samora_monai.selection.patients import SAME_ANATOMY
from tests.tiny import refused

ROOT = Path("/data")


def groups(*cases: str, pattern: str | None = None, suffix: str = ".nii.gz") -> list[int]:
    """Number the patients in the order of their first scan."""
    names = patients_of([str(ROOT / f"{case}{suffix}") for case in cases], ROOT, pattern)
    order = list(dict.fromkeys(names))
    return [order.index(name) for name in names]


@pytest.mark.parametrize(
    ("cases", "expected"),
    [
        (["patient012_frame01", "patient012_frame12", "patient013_frame01"], [0, 0, 1]),
        (["sub-03/ses-1/anat/sub-03_T1w", "sub-03/ses-2/anat/sub-03_T1w", "sub-04/anat/sub-04_T1w"], [0, 0, 1]),
        (["rawdata_2/sub-03_T1w", "rawdata_3/sub-03_T2w"], [0, 0]),
        (["P01/before", "P01/after", "P02/before"], [0, 0, 1]),
        (["imagesTr/la_001", "imagesTr/la_002"], [0, 1]),
        (["imagesTr/la_001_0000", "imagesTr/la_002_0000"], [0, 1]),
        ([f"BraTS20_Training_{i:03d}" for i in range(9)], [*range(9)]),
        ([f"BraTS2{i // 9}_Training_{i:03d}" for i in range(18)], [*range(18)]),
        ([f"LUNG1-{i:03d}/CT_1" for i in range(9)], [*range(9)]),
        (["a", "b"], [0, 1]),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) else "",
)
def test_names_tell_the_patient(cases: list[str], expected: list[int]):
    assert groups(*cases) == expected


def test_a_pattern_replaces_the_rule():
    cases = ("x1_a7_p", "x1_b8_p", "x2_a7_q")
    assert groups(*cases, pattern=r"_(.)\d") == [0, 1, 0]
    assert groups(*cases, pattern=r"\w$") == [0, 0, 1]
    assert groups(*cases, pattern="none of them") == [0, 1, 2]
    with refused("patient_pattern", "'('"):
        groups(*cases, pattern="(")


def write_series(folder: Path, patient: str) -> str:
    import itk

    folder.mkdir(parents=True)
    slice_ = itk.image_from_array(np.zeros((4, 4), np.int16))
    header = slice_.GetMetaDataDictionary()
    header["0010|0020"] = patient
    writer = itk.ImageFileWriter.New(slice_, FileName=str(folder / "1.dcm"), ImageIO=itk.GDCMImageIO.New())
    writer.UseInputMetaDataDictionaryOn()
    writer.Update()
    return str(folder)


def test_dicom_headers_tell_the_patient(tmp_path: Path):
    ids = ("anna", "bob", "anna", "")
    series = [write_series(tmp_path / f"{name}", ids[i]) for i, name in enumerate("stuv")]
    assert patients_of(series, tmp_path) == ["ID anna", "ID bob", "ID anna", "v"]


def test_one_id_for_all_is_an_anonymised_one(tmp_path: Path):
    series = [write_series(tmp_path / name, "ANON") for name in "st"]
    assert patients_of(series, tmp_path) == ["s", "t"]


def anatomy(seed: int, shift: int = 0, gamma: float = 1.0, crop: int = 0, noise: float = 0.0) -> Anatomy:
    """Blobs in a volume of 60 x 60 x 40 mm."""
    rng = np.random.default_rng(seed)
    values = ndimage.gaussian_filter(rng.normal(size=(60, 60, 40)), 3)
    values = (values - values.min()) / np.ptp(values)
    values = np.roll(values, shift, 0)[crop:] ** gamma + rng.normal(0, noise, (60 - crop, 60, 40))
    return Anatomy(MetaTensor(torch.from_numpy(values[None]), affine=torch.eye(4)))


def test_anatomy_is_known_again_at_another_place_and_contrast():
    first = anatomy(0)
    assert first.likeness(first) > 0.99
    assert first.likeness(anatomy(0, shift=6, gamma=2.0, crop=8, noise=0.02)) >= SAME_ANATOMY


def test_other_anatomy_is_told_apart():
    likeness = [anatomy(0).likeness(anatomy(seed)) for seed in (1, 2, 3)]
    assert max(likeness) < SAME_ANATOMY - 0.1
    assert anatomy(0).likeness(anatomy(1)) == pytest.approx(anatomy(1).likeness(anatomy(0)))


def test_volumes_of_different_size_are_compared_at_the_coarser_spacing():
    large = MetaTensor(torch.rand(1, 100, 100, 60), affine=torch.diag(torch.tensor([3.0, 3, 3, 1])))
    assert Anatomy(large).spacing > anatomy(0).spacing
    assert 0 <= Anatomy(large).likeness(anatomy(0)) < SAME_ANATOMY


def test_pictures_have_too_little_anatomy():
    picture = Anatomy(MetaTensor(torch.rand(1, 50, 50, 1), affine=torch.eye(4)))
    assert picture.likeness(picture) == 0
