"""Reading and checking one case."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import EnsureChannelFirstd, LoadImaged

from samora_monai.data import CheckCased, LoadCased
from samora_monai.errors import InputError, MissingFileError
from tests.tiny import refused


def load(item, keys=("image", "label")):
    keys = [key for key in keys if key in item]
    return EnsureChannelFirstd(keys)(LoadCased(keys)(item))


def test_loads_like_monai(tmp_path, write_nifti):
    array = np.arange(60, dtype=np.int16).reshape(4, 5, 3)
    affine = np.diag([-1.5, 2.0, 4.0, 1.0])
    item = {"image": str(write_nifti(tmp_path / "a.nii.gz", array, affine)), "image_path": "kept", "model": "kept"}
    loader = LoadCased("image")
    assert isinstance(loader, LoadImaged)
    out = loader(item)
    np.testing.assert_array_equal(out["image"].numpy(), array)
    np.testing.assert_array_equal(out["image"].affine.numpy(), affine)
    assert out["image"].dtype == torch.float32
    assert out["image_path"] == out["model"] == "kept"
    loader._loader.image_only = False  # MONAI Label does this
    assert loader(item)["image_meta_dict"]["filename_or_obj"] == item["image"]


def test_unreadable_files(tmp_path, write_nifti):
    noise = np.random.default_rng(0).integers(0, 999, (32, 32, 32)).astype(np.int16)
    whole = write_nifti(tmp_path / "whole.nii.gz", noise).read_bytes()
    raw = write_nifti(tmp_path / "whole.nii", noise).read_bytes()
    files = {
        "cut.nii.gz": (whole[: len(whole) // 2], "Compressed file ended before"),
        "cut.nii": (raw[: len(raw) // 2], "Expected 65536 bytes, got 3[0-9]+ bytes"),
        "text.nii.gz": (b"hello", "not a gzip file"),
        "text.mha": (b"hello", "Could not create IO object"),
        "cut.nrrd": (b"NRRD0004\ntype: short\n", "."),
    }
    for name, (content, reason) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"^cannot read '{tmp_path}/{name}': .*{reason}") as error:
            LoadCased("image")({"image": str(tmp_path / name)})
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300 + len(str(tmp_path))
    with pytest.raises(MissingFileError, match=r"scan '.*gone.nii' does not exist"):
        LoadCased("image")({"image": str(tmp_path / "gone.nii")})
    with pytest.raises(MissingFileError, match="scan '' does not exist"):  # not the current folder
        LoadCased("image")({"image": ""})
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"cannot read '.*/folder': .*no DICOMs"):
        LoadCased("image")({"image": str(tmp_path / "folder")})


def test_a_wrong_crc_is_noticed(tmp_path, write_nifti):
    """nibabel itself stops before the CRC at the end of a gzip file."""
    array = np.random.default_rng(0).integers(0, 999, (32, 32, 8)).astype(np.int16)
    path = write_nifti(tmp_path / "a.nii.gz", array)
    whole = path.read_bytes()
    for position in (-8, -1, len(whole) // 2):  # CRC, size, voxels
        content = bytearray(whole)
        content[position] ^= 1
        path.write_bytes(content)
        with refused(f"cannot read '{path}': the file is damaged (", "; copy it again"):
            LoadCased("image")({"image": str(path)})
    path.write_bytes(whole + gzip.compress(b"more"))  # a second member is legal
    np.testing.assert_array_equal(LoadCased("image")({"image": str(path)})["image"].numpy(), array)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_values_are_refused(tmp_path, write_nifti, name, dtype):
    path = write_nifti(tmp_path / name, np.full((4, 5, 3), 1 + 2j, dtype))
    with refused(f"'{path}' holds values of type {np.dtype(dtype)}, expected real numbers; save the magnitude"):
        LoadCased("image")({"image": str(path)})


def test_scaled_and_big_endian_files_are_read_as_nibabel_reads_them(tmp_path):
    for name in ("a.nii.gz", "a.nii"):
        image = nib.Nifti1Image(np.arange(60, dtype=">i2").reshape(4, 5, 3), np.eye(4))
        image.header.set_slope_inter(0.5, -7)
        nib.save(image, tmp_path / name)
        array = LoadCased("image")({"image": str(tmp_path / name)})["image"].numpy()
        np.testing.assert_array_equal(array, nib.load(tmp_path / name).get_fdata())
        assert array.min() < 0


def test_check_passes_cases_unchanged(tmp_path, write_nifti):
    label = np.zeros((4, 5, 3), np.uint8)
    label[1] = 2
    item = {
        "image": write_nifti(tmp_path / "image.nii.gz", label.astype(np.float32)),
        "label": write_nifti(tmp_path / "label.nii.gz", label, np.eye(4) + 5e-4),
        "device": "cpu",
    }
    out = CheckCased(["image", "label"], num_classes=3)(load(item))
    assert out["device"] == "cpu"
    np.testing.assert_array_equal(out["label"].numpy()[0], label)
    assert set(CheckCased("image", num_classes=3)(load({"image": item["image"]}))) == {"image"}
    assert CheckCased("image")(load(item, ["image"]))["label"] == item["label"]  # a path that nobody read
    CheckCased("image")({"image": torch.zeros(1, 2, 2, 2)})  # constant, without metadata


@pytest.mark.parametrize(
    ("shape", "found"),
    [((4, 5, 3, 2), r"\[4, 5, 3, 2\]"), ((4, 5), r"\[4, 5\]"), ((4, 5, 3, 1, 3), r"\[4, 5, 3, 1, 3\]")],
)
def test_not_one_volume(tmp_path, write_nifti, shape, found):
    item = {"image": write_nifti(tmp_path / "a.nii.gz", np.zeros(shape, np.int16))}
    sentence = rf"image '.*a.nii.gz' must be one 3-D volume, got shape {found}; give one 3-D volume per file"
    with pytest.raises(InputError, match=sentence):
        CheckCased("image")(load(item))


def test_values_that_are_not_finite(tmp_path, write_nifti):
    array = np.zeros((4, 5, 3), np.float32)
    array[0, 0], array[1, 1, 1] = np.nan, np.inf
    item = {"image": write_nifti(tmp_path / "a.nii.gz", array)}
    with pytest.raises(InputError, match=r"image '.*a.nii.gz' has 4 voxels that are NaN or infinite; replace"):
        CheckCased("image")(load(item))


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_no_place_in_space(value):
    affine = torch.eye(4)
    affine[1, 1] = value
    image = MetaTensor(torch.zeros(1, 4, 5, 3), affine=affine, meta={"filename_or_obj": "s/i.nii.gz"})
    with pytest.raises(
        InputError, match=r"image 's/i.nii.gz' has an affine that cannot be inverted, \[\[1.0, .*header"
    ):
        CheckCased("image")({"image": image})


def test_singular_affine_after_rounding_to_float32(tmp_path, write_nifti):
    """The third axis is the sum of the others, up to the precision of the header."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0.7, 0.1, 0.8], [0.3, 0.9, 1.2], [0.1, 0.3, 0.4]])
    path = write_nifti(tmp_path / "a.nii.gz", affine=affine)
    loaded = load({"image": path, "label": path})
    assert torch.linalg.matrix_rank(loaded["image"].affine[:3, :3]) == 3
    with refused(f"image '{path}' has an affine that cannot be inverted"):
        CheckCased(["image", "label"], num_classes=2)(loaded)
    thin = np.diag([0.05, 0.05, 50.0, 1.0])  # unusual, but no mistake
    CheckCased("image")(load({"image": write_nifti(tmp_path / "b.nii.gz", affine=thin)}))


def test_label_on_another_grid(tmp_path, write_nifti):
    image = write_nifti(tmp_path / "i.nii.gz")
    other_shape = write_nifti(tmp_path / "l.nii.gz", np.zeros((4, 5, 2), np.uint8))
    names = r"label '.*/l.nii.gz' is not on the grid of image '.*/i.nii.gz'"
    with pytest.raises(InputError, match=names + r": shape \[4, 5, 2\], expected \[4, 5, 3\]; resample"):
        CheckCased("image")(load({"image": image, "label": other_shape}))
    moved = np.eye(4)
    moved[2, 3] = 246
    write_nifti(tmp_path / "l.nii.gz", np.zeros((4, 5, 3), np.uint8), moved)
    both = r"label \[.*246.0\]\], image \[\[1.0, 0.0, 0.0, 0.0\]"
    with pytest.raises(InputError, match=names + ": affines differ by up to 246 mm, " + both):
        CheckCased("image")(load({"image": image, "label": tmp_path / "l.nii.gz"}))


@pytest.mark.parametrize("axes", ["LPI", "SAR", "PRS"])
def test_a_label_with_flipped_axes_gets_those_of_its_image(tmp_path, write_nifti, axes):
    """In an oblique scan with voxels of three sizes; a shift by a voxel is still refused."""
    values = np.random.default_rng(0).integers(0, 3, (4, 5, 3)).astype(np.uint8)
    affine = np.array([[-0.7, 0.2, 0.1, 3], [0.15, 0.9, -0.4, -7], [0.05, 0.1, 2.5, 11], [0, 0, 0, 1]])
    image = nib.Nifti1Image(values, affine)
    turned = image.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes))
    )
    item = {"image": write_nifti(tmp_path / "i.nii.gz", values.astype(np.float32), affine), "label": tmp_path / "l.nii"}
    nib.save(turned, item["label"])
    out = CheckCased(["image", "label"], num_classes=3)(load(item))
    np.testing.assert_array_equal(out["label"].numpy()[0], values)
    np.testing.assert_allclose(out["label"].affine, out["image"].affine, atol=1e-5)
    shifted = turned.affine.copy()
    shifted[:3, 3] += turned.affine[:3, 2]
    nib.save(nib.Nifti1Image(np.asarray(turned.dataobj), shifted), item["label"])
    with refused("l.nii' is not on the grid of image"):
        CheckCased(["image", "label"], num_classes=3)(load(item))


@pytest.mark.parametrize(
    ("values", "num_classes", "sentence"),
    [
        ((0, 1, 5), 3, "has the values 0, 1, 5, expected integers from 0 to 2; use --num_classes 6 or renumber"),
        ((0, 255), 2, "has the values 0, 255, expected integers from 0 to 1; use --num_classes 256"),
        ((0, 0.5, 1), 2, "has the values 0, 0.5, 1, expected integers from 0 to 1; give one integer per voxel"),
        ((0, -1), 2, "has the values -1, 0, expected integers"),
        ((0, 300), None, "has the values 0, 300, expected integers from 0 to 255; give one integer"),
        ((0, np.nan), 2, "has the values 0, nan, expected integers"),
    ],
)
def test_label_values(tmp_path, write_nifti, values, num_classes, sentence):
    label = np.resize(np.asarray(values, np.float32), (4, 5, 3))
    item = {
        "image": write_nifti(tmp_path / "i.nii.gz"),
        "label": write_nifti(tmp_path / "l.nii.gz", label),
    }
    with pytest.raises(InputError, match="label '.*l.nii.gz' " + sentence):
        CheckCased("image", num_classes=num_classes)(load(item))
