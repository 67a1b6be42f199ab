"""Label maps are written in the geometry of the scan, atomically."""

from __future__ import annotations

from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, Orientationd, SaveImaged

from samora_monai.data import LoadCased, SaveLabeld, check_output_dir, label_files
from samora_monai.data.label_files import PROVENANCE, read_provenance
from samora_monai.errors import InputError
from samora_monai.synthetic.phantoms import make_phantom


def label_map(scan, shape=(1, 4, 5, 3)):
    return MetaTensor(torch.ones(shape), meta={"filename_or_obj": str(scan)})


@pytest.mark.parametrize("case", [1, 2, 3, 6], ids=["LPS", "LAS", "oblique PIR", "oblique RAS"])
def test_round_trip_through_inversion(tmp_path, case):
    """Scan -> RAS -> label map -> inverted -> file: the label of the phantom, voxel for voxel, on the scan's grid."""
    image, label = make_phantom(case, (20, 24, 16))
    nib.save(image, tmp_path / "scan.nii.gz")
    nib.save(label, tmp_path / "label.nii.gz")
    before = Compose(
        [
            LoadCased(["image", "label"]),
            EnsureChannelFirstd(["image", "label"]),
            Orientationd(["image", "label"], axcodes="RAS", labels=None),
        ]
    )
    item = before({"image": tmp_path / "scan.nii.gz", "label": tmp_path / "label.nii.gz"})
    assert nib.aff2axcodes(item["image"].affine.numpy()) == ("R", "A", "S")
    item["pred"] = MetaTensor(item["label"].as_tensor(), meta=item["image"].meta)
    item = Invertd("pred", transform=before, orig_keys="image", nearest_interp=True)(item)
    saver = SaveLabeld("pred", tmp_path / "out")
    assert isinstance(saver, SaveImaged)
    saved = nib.Nifti1Image.from_filename(saver(item)["pred"].meta["saved_to"])
    assert saved.get_filename() == str(tmp_path / "out" / "scan_seg.nii.gz")
    assert saved.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(saved.dataobj), np.asarray(label.dataobj))
    np.testing.assert_allclose(saved.affine, nib.Nifti1Image.from_filename(tmp_path / "scan.nii.gz").affine, atol=1e-5)
    np.testing.assert_allclose(saved.get_qform(), saved.affine, atol=1e-4)
    assert (saved.header["sform_code"], saved.header["qform_code"]) == (1, 1)
    assert saved.header.get_xyzt_units()[0] == "mm"


def place_for_itk(file: Path) -> np.ndarray:
    """Origin, spacing and directions in rows."""
    image = itk.imread(file)
    return np.stack([image.GetOrigin(), image.GetSpacing(), *np.asarray(image.GetDirection())])


@pytest.mark.parametrize("code", [0, 1])
def test_lies_where_the_scan_lies(tmp_path, code):
    """Also in ITK, which places a NIfTI file without codes differently from nibabel."""
    scan = nib.Nifti1Image(np.zeros((8, 6, 4), np.float32), None)
    scan.header.set_zooms((1.5, 2, 3))
    affine = scan.header.get_base_affine()
    scan.set_sform(affine, code)
    scan.set_qform(affine, code)
    file, label = tmp_path / "scan.nii.gz", tmp_path / "out" / "scan_seg.nii.gz"
    nib.save(scan, file)
    SaveLabeld("pred", tmp_path / "out")(EnsureChannelFirstd("pred")(LoadCased("pred")({"pred": file})))
    for place in (place_for_itk, lambda path: nib.load(path).affine):
        np.testing.assert_array_equal(place(label), place(file))
    assert (np.ravel(place_for_itk(file)[0]) == 0).all() == (code == 0)  # the origin


def test_names_and_subfolders(tmp_path, capsys):
    saver = SaveLabeld("pred", tmp_path / "out", data_root_dir="/data", output_postfix="organs")
    for scan in ("/data/p1/ct_1.25mm.nii.gz", "/data/dicom/ct.004", "/elsewhere/x.nii"):
        saver({"pred": label_map(scan), "model": "kept"})
    files = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.nii.gz")}
    assert files == {"p1/ct_1.25mm_organs.nii.gz", "dicom/ct.004_organs.nii.gz", "x_organs.nii.gz"}
    assert capsys.readouterr() == ("", "")
    saver({"pred": label_map("/data/dicom/ct.004")})  # the same scan again is a new run, not a clash
    with pytest.raises(InputError, match=r"results of '/elsewhere/x.nii' and '/other/x.mha' would both be '.*x_organs"):
        saver({"pred": label_map("/other/x.mha")})


def test_a_failure_leaves_the_former_file(tmp_path, monkeypatch):
    """A full disk: no incomplete file under the final name, and none beside it."""
    item = {"pred": label_map("/data/a.nii.gz")}
    SaveLabeld("pred", tmp_path / "out")(item)
    former = (tmp_path / "out" / "a_seg.nii.gz").read_bytes()

    def full_disk(image, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(label_files.nib, "save", full_disk)
    for scan in ("/data/a.nii.gz", "/data/b.nii.gz"):
        with pytest.raises(InputError, match=r"cannot write '.*_seg.nii.gz': No space left on device"):
            SaveLabeld("pred", tmp_path / "out")({"pred": label_map(scan)})
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["a_seg.nii.gz"]
    assert (tmp_path / "out" / "a_seg.nii.gz").read_bytes() == former


def test_unfinished_file_is_hidden(tmp_path, monkeypatch):
    """`find_scans` ignores the file of an interrupted run."""
    written = []

    def save(image, path):
        written.append(path)
        path.write_bytes(b"")

    monkeypatch.setattr(label_files.nib, "save", save)
    SaveLabeld("pred", tmp_path)({"pred": label_map("/data/a.nii.gz")})
    assert written[0].parent == tmp_path
    assert written[0].name.startswith(".")
    assert written[0].name.endswith("a_seg.nii.gz")


@pytest.mark.parametrize("shape", [(1, 4, 5, 3), (1, 70, 60, 50)], ids=["small", "large"])
def test_origin_of_a_whole_file_alone(tmp_path, shape):
    saver = SaveLabeld("pred", tmp_path)
    file = saver.file_of("/data/a.nii.gz")
    assert read_provenance(file) is None
    for origin in ("samora_monai:" + "0" * 40, ""):
        saver({"pred": label_map("/data/a.nii.gz", shape), PROVENANCE: origin})
        assert read_provenance(file) == origin
    saver({"pred": label_map("/data/a.nii.gz", shape)})
    assert read_provenance(file) == ""
    whole = file.read_bytes()
    for size in {*range(0, len(whole), max(1, len(whole) // 50)), len(whole) - 8, len(whole) - 1}:
        file.write_bytes(whole[:size])
        assert read_provenance(file) is None, size
    for other in (b"text", b"\x1f\x8b" + whole[200:], whole[:30] + b"?" * 40 + whole[70:]):
        file.write_bytes(other)
        assert read_provenance(file) is None


def test_output_dir(tmp_path):
    assert check_output_dir(tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(
            InputError, match=rf"cannot write to output folder '{path}': .*; choose another .*--output_dir"
        ):
            check_output_dir(path)
    with pytest.raises(InputError, match=r"cannot write '.*file/a_seg.nii.gz': "):
        SaveLabeld("pred", tmp_path / "file")({"pred": label_map("/data/a.nii.gz")})
