"""Scans on disk: volume files, DICOM series, trees of both."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from samora_monai.data import LoadCased, case_name, find_scans
from samora_monai.data.scans import relative_case
from samora_monai.errors import InputError, MissingFileError

SERIES = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)  # [Z, Y, X]


def found(path):
    return [str(Path(scan["image"]).relative_to(path)) for scan in find_scans(path)]


@pytest.mark.parametrize(
    ("path", "name"),
    [("x/a.nii.gz", "a"), ("a.b_1.25mm.nii", "a.b_1.25mm"), ("A.NII.GZ", "A"), ("dicom/ct.004", "ct.004")],
)
def test_case_name(path, name):
    assert case_name(path) == name


def test_relative_case():
    assert relative_case("/data/p1/a.nii.gz", "/data") == Path("p1/a")
    assert relative_case("/data/p1/a.nii.gz", "/data/p1/a.nii.gz") == Path("a")
    assert relative_case("/other/p1/a.nii.gz", "/data") == Path("a")
    assert relative_case("/database/a.nii.gz", "/data") == Path("a")
    assert relative_case("/data/p1/a.nii.gz", "/data/x/..") == Path("p1/a")


def test_tree(tmp_path, write_nifti, write_dicom):
    """Volumes and DICOM folders side by side; hidden and other files are skipped."""
    for name in ("b.nii.gz", "a.nii", "p1/scan.nii.gz", "p2/scan.nii.gz", ".hidden.nii", ".cache/c.nii"):
        write_nifti(tmp_path / name)
    for name in ("c.mha", "d.nrrd", "e.mhd", "e.raw", "notes.txt", "LICENSE", "empty"):
        (tmp_path / name).write_bytes(b"" if name == "empty" else b"x" * 200)
    write_dicom(tmp_path / "p3" / "ct.004", SERIES)
    (tmp_path / "p3" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert found(tmp_path) == [
        "a.nii", "b.nii.gz", "c.mha", "d.nrrd", "e.mhd", "p1/scan.nii.gz", "p2/scan.nii.gz", "p3/ct.004"
    ]  # fmt: skip
    assert find_scans(tmp_path / "a.nii") == [{"image": str(tmp_path / "a.nii")}]


def test_dicom_series_is_read_as_written(tmp_path, write_dicom):
    write_dicom(tmp_path / "ct_004", SERIES)
    scans = find_scans(tmp_path / "ct_004")
    assert scans == [{"image": str(tmp_path / "ct_004")}]
    image = LoadCased("image")(scans[0])["image"]
    np.testing.assert_array_equal(image.numpy(), SERIES.transpose(2, 1, 0))
    expected = np.diag([-0.8, -0.9, 2.5, 1.0])
    expected[:3, 3] = (10, 20, 30)  # LPS -> RAS
    np.testing.assert_allclose(image.affine.numpy(), expected, atol=1e-6)


def test_dicom_without_preamble(tmp_path, write_dicom):
    """Old files have neither preamble nor meta information; only GDCM recognises them."""
    write_dicom(tmp_path / "s", SERIES[:2])
    for file in (tmp_path / "s").iterdir():
        content = file.read_bytes()[132:]
        meta_length = 12 + int.from_bytes(content[8:12], "little")
        file.write_bytes(content[meta_length:])
    assert find_scans(tmp_path) == [{"image": str(tmp_path / "s")}]


def test_two_series_in_one_folder(tmp_path, write_dicom):
    write_dicom(tmp_path / "s", SERIES[:3], "1.2.1")
    write_dicom(tmp_path / "s", SERIES[:2], "1.2.2", z=99)
    with pytest.raises(InputError, match=r"s' holds 2 series \(3 \+ 2 files\), expected one; move each series"):
        find_scans(tmp_path)


def test_slices_at_one_position(tmp_path, write_dicom):
    """The same series twice, which ITK reads as one interleaved volume with half the spacing."""
    write_dicom(tmp_path / "s", SERIES)
    for file in list((tmp_path / "s").iterdir()):
        shutil.copy(file, file.with_name(f"copy_of_{file.name}"))
    sentence = r"s' has two slices at one position, '.*IM_0' and '.*IM_0'; keep one file for each slice"
    for read in (find_scans, lambda folder: LoadCased("image")({"image": folder})):
        with pytest.raises(InputError, match=sentence):
            read(tmp_path / "s")


def test_two_series_of_a_datalist(tmp_path, write_dicom):
    """MONAI's reader reads one of them silently."""
    write_dicom(tmp_path / "s", SERIES[:3], "1.2.1")
    write_dicom(tmp_path / "s", SERIES[:2], "1.2.2", z=99)
    with pytest.raises(InputError, match=r"s' holds 2 series \(3 \+ 2 files\), expected one; move each series"):
        LoadCased("image")({"image": tmp_path / "s"})


def test_results_are_no_scans(tmp_path, write_nifti):
    """The list is the same before, during and after a run."""
    scan = write_nifti(tmp_path / "data" / "a.nii.gz")
    write_nifti(tmp_path / "data" / "out" / "sub" / "a_seg.nii.gz")
    (tmp_path / "link").symlink_to(tmp_path / "data" / "out")
    for results in (tmp_path / "data" / "out", tmp_path / "data" / "x" / ".." / "out", tmp_path / "link"):
        assert find_scans(tmp_path / "data", results) == [{"image": str(scan)}]
    assert len(find_scans(tmp_path / "data", tmp_path)) == 2
    with pytest.raises(InputError, match=r"results would be written among the scans in '.*data'.*--output_dir"):
        find_scans(tmp_path / "data", tmp_path / "data" / "x" / "..")
    assert find_scans(scan, tmp_path / "data") == [{"image": str(scan)}]  # a file alone may have its label beside it


def test_refused(tmp_path, write_nifti):
    with pytest.raises(MissingFileError, match="nowhere' does not exist; give volume files"):
        find_scans(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no scan in '.*'; looked for volume files \(.nii.gz, .*DICOM series in it"):
        find_scans(tmp_path)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a.png' is not a volume file .*; a DICOM series is given by its folder"):
        find_scans(tmp_path / "a.png")
    write_nifti(tmp_path / "p" / "a.nii")
    write_nifti(tmp_path / "p" / "a.nii.gz")
    with pytest.raises(InputError, match=r"results of '.*p/a.nii' and '.*p/a.nii.gz' would get the same name"):
        find_scans(tmp_path)
