"""Reading and scaling any format: same values, same axes, and one sentence for each file that cannot be used."""

from __future__ import annotations

import sys

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Orientationd
from PIL import Image

from samora_monai.data import LoadCased, LoadUnlabeledd, ScaleUnlabeledd, ScanScaling, SliceDataset
from samora_monai.data.any_image import ARRAYS
from samora_monai.errors import MissingFileError
from tests.tiny import refused

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (5, 7), dtype=np.uint8)  # [H, W]
AS_RAS = PICTURE[::-1, ::-1].T[..., None].astype(np.float32)  # [W, H, 1]
VOLUME = RNG.integers(-500, 500, (6, 5, 4)).astype(np.int16)  # [X, Y, Z]


def read(path, **settings):
    out = LoadUnlabeledd(**settings)({"image": str(path), "other": 1})
    image = out["image"]
    assert out["other"] == 1
    assert isinstance(image, MetaTensor) and image.dtype == torch.float32 and image.ndim == 4 and len(image) == 1
    return image.numpy()[0]


def scaled(path, **settings):
    loaded = LoadUnlabeledd()({"image": path, "other": 1})
    out = ScaleUnlabeledd("image", ScanScaling(**settings))(loaded)
    assert out["other"] == 1 and out["image"].dtype == torch.float32
    return out["image"].numpy()[0]


def save_h5(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name.replace("__", "/")] = array
    return path


def picture(path, array, mode=None, **settings):
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path, **settings)
    return path


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([-1.0, -1, 1, 1]), np.eye(4)[[1, 0, 2, 3]]])
def test_volumes_are_turned_to_ras(tmp_path, write_nifti, affine):
    expected = nib.as_closest_canonical(nib.Nifti1Image(VOLUME, affine)).get_fdata()
    np.testing.assert_array_equal(read(write_nifti(tmp_path / "a.nii.gz", VOLUME, affine)), expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_of_volumes_are_those_of_the_segmentation(tmp_path, write_nifti, axis):
    """Sagittal, coronal or axial slices of a scan in LAS; pictures and arrays have no such axis."""
    file = write_nifti(tmp_path / "a.nii.gz", VOLUME, np.diag([-1.0, 1, 1, 1]))
    item = {"image": str(file)}
    load = Compose([LoadCased("image"), EnsureChannelFirstd("image"), Orientationd("image", "RAS", labels=None)])
    as_they_are = {"image_size": VOLUME.shape[0], "min_content": 0}
    one = SliceDataset([item], load, slice_axis=axis, **as_they_are)
    other = SliceDataset([item], LoadUnlabeledd(slice_axis=axis), **as_they_are)
    assert len(one) == len(other) == VOLUME.shape[axis]
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a["image"], b["image"])
    np.save(tmp_path / "a.npy", VOLUME)
    for file in (tmp_path / "a.npy", picture(tmp_path / "a.png", PICTURE)):
        np.testing.assert_array_equal(read(file, slice_axis=axis), read(file))
    with refused("slice_axis must be 0 (sagittal)"):
        LoadUnlabeledd(slice_axis=3)


@pytest.mark.parametrize("name", ["a.mha", "a.mhd", "a.nrrd", "dicom"])
def test_itk_volumes_are_turned_to_ras(tmp_path, write_dicom, name):
    import itk

    if name == "dicom":
        write_dicom(tmp_path / name, VOLUME.transpose(2, 1, 0))
    else:
        itk.imwrite(itk.image_from_array(np.ascontiguousarray(VOLUME.transpose(2, 1, 0))), str(tmp_path / name))
    np.testing.assert_array_equal(read(tmp_path / name), VOLUME[::-1, ::-1])  # ITK's axes run to left and back


def test_a_picture_of_a_slice_lies_as_the_slice(tmp_path, write_nifti):
    """The picture's left is the patient's right, its top the front: LPS with the columns first."""
    lps = write_nifti(tmp_path / "a.nii.gz", PICTURE.T[..., None], np.diag([-1.0, -1, 1, 1]))
    expected = read(lps)
    np.testing.assert_array_equal(expected, AS_RAS)
    np.testing.assert_array_equal(read(picture(tmp_path / "a.png", PICTURE)), expected)
    np.testing.assert_array_equal(read(picture(tmp_path / "a.tif", PICTURE)), expected)
    smooth = np.linspace(20, 220, 48 * 32).reshape(48, 32).astype(np.uint8)
    jpeg = read(picture(tmp_path / "a.JPG", smooth, quality=95))
    assert np.abs(jpeg - smooth[::-1, ::-1].T[..., None]).max() <= 3


def test_kinds_of_pictures(tmp_path):
    """16 bits, black and white, palettes, colours, transparency, floats."""
    wide = PICTURE.astype(np.uint16) * 200
    for name in ("a.png", "a.tiff"):
        np.testing.assert_array_equal(read(picture(tmp_path / name, wide)), AS_RAS * 200)
    np.testing.assert_array_equal(read(picture(tmp_path / "f.tif", PICTURE / np.float32(7))), AS_RAS / np.float32(7))
    np.testing.assert_array_equal(read(picture(tmp_path / "1.png", PICTURE > 99)), 255 * (AS_RAS > 99))
    for mode in ("LA", "RGBA", "RGB", "P"):
        out = read(picture(tmp_path / f"{mode}.png", PICTURE, mode))
        np.testing.assert_allclose(out, AS_RAS, atol=1e-3 if mode != "P" else 3)  # 216 colours
    colours = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    luminance = (colours @ [0.299, 0.587, 0.114])[::-1, ::-1].T[..., None]
    np.testing.assert_allclose(read(picture(tmp_path / "c.png", colours)), luminance, atol=1e-4)
    clear = np.dstack([colours, np.zeros((5, 7), np.uint8)])
    np.testing.assert_allclose(read(picture(tmp_path / "t.png", clear)), luminance, atol=1e-4)


def test_pages_of_a_tiff_are_slices(tmp_path):
    pages = [Image.fromarray(PICTURE // (k + 1)) for k in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    out = read(tmp_path / "a.tif")
    assert out.shape == (7, 5, 3)
    for k in range(3):
        np.testing.assert_array_equal(out[..., k], (PICTURE // (k + 1))[::-1, ::-1].T)
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=[Image.fromarray(PICTURE[:3])])
    with refused("b.tif' has pages of 2 sizes, expected one"):
        read(tmp_path / "b.tif")


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_each_kind(tmp_path, kind):
    def save(name, array):
        if kind == "npy":
            np.save(tmp_path / f"{name}.npy", array)
            return tmp_path / f"{name}.npy"
        if kind == "npz":
            np.savez_compressed(tmp_path / f"{name}.npz", image=array, label=array > 0)
            return tmp_path / f"{name}.npz"
        return save_h5(tmp_path / f"{name}.h5", image=array, label=array > 0)

    np.testing.assert_array_equal(read(save("a", VOLUME)), VOLUME)  # the last axis is the shortest
    np.testing.assert_array_equal(read(save("b", VOLUME[0].astype(">f8"))), VOLUME[0][..., None])
    np.testing.assert_array_equal(read(save("c", VOLUME), array_slice_axis=0), VOLUME.transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("shape", "axis", "expected"),
    [
        ((9, 4, 4), None, 0),  # the one that differs, also when it is the longest
        ((4, 9, 4), None, 1),
        ((3, 4, 4), None, 0),
        ((5, 3, 4), None, 1),
        ((4, 4, 4), None, 2),
        ((9, 4, 4), 1, 1),
        ((9, 4, 4), -1, 2),
    ],
)
def test_slice_axis_of_arrays(tmp_path, shape, axis, expected):
    array = RNG.random(shape, dtype=np.float32)
    np.save(tmp_path / "a.npy", array)
    out = read(tmp_path / "a.npy", array_slice_axis=axis)
    np.testing.assert_array_equal(out, np.moveaxis(array, expected, -1))


def test_names_of_arrays(tmp_path):
    one, other = RNG.random((4, 5)), RNG.random((4, 5))
    deep = save_h5(tmp_path / "deep.hdf5", a__b=one, a__c=other)
    np.testing.assert_allclose(read(deep, array_key="a/c")[..., 0], other, atol=1e-7)
    with refused("deep.hdf5' has no array 'image' but a/b, a/c; name one with --array_key"):
        read(deep)
    np.testing.assert_allclose(read(save_h5(tmp_path / "x.h5", volume=one))[..., 0], one, atol=1e-7)
    np.savez(tmp_path / "x.npz", data=one)
    np.testing.assert_allclose(read(tmp_path / "x.npz")[..., 0], one, atol=1e-7)
    np.savez(tmp_path / "y.npz", data=one, seg=other)
    with refused("y.npz' has no array 'image' but data, seg"):
        read(tmp_path / "y.npz")
    with refused("z.h5' has no array 'image' but none at all"):
        read(save_h5(tmp_path / "z.h5"))


def test_damaged_files_are_named(tmp_path, write_nifti):
    big = RNG.integers(0, 256, (64, 64), dtype=np.uint8)
    for name in ("a.png", "a.jpg", "a.tif"):
        picture(tmp_path / name, big)
    write_nifti(tmp_path / "a.nii.gz", RNG.integers(0, 999, (32, 32, 8)).astype(np.int16))
    np.save(tmp_path / "a.npy", big)
    np.savez(tmp_path / "a.npz", image=big)
    save_h5(tmp_path / "a.h5", image=big)
    for file in list(tmp_path.iterdir()):
        content = file.read_bytes()
        for name, damaged in (("cut", content[: len(content) // 2]), ("text", b"no image"), ("empty", b"")):
            path = tmp_path / f"{name}{''.join(file.suffixes)}"
            path.write_bytes(damaged)
            with refused(f"cannot read '{path}': "):
                read(path)


def test_unsuitable_content_is_refused(tmp_path, write_nifti):
    def npy(array):
        np.save(tmp_path / "a.npy", array, allow_pickle=True)
        return tmp_path / "a.npy"

    with refused("cannot read '", "a.npy': Object arrays cannot be loaded when allow_pickle=False"):
        read(npy(np.array([{}, None])))
    with refused("a.npy' holds an array of shape [4, 5, 6, 2], expected [X, Y] or [X, Y, Z]; give one slice or"):
        read(npy(np.zeros((4, 5, 6, 2))))
    with refused("shape [0, 4]"):
        read(npy(np.zeros((0, 4))))
    with refused("a.npy' holds values of type complex128, expected real numbers"):
        read(npy(np.zeros((4, 5), complex)))
    for value in (np.nan, np.inf, 1e300):  # too large for float32
        with refused("a.npy' has 1 voxels that are NaN or infinite"), np.errstate(over="ignore"):
            read(npy(np.where(np.arange(20).reshape(4, 5) == 7, value, 0)))
    with refused("f.tif' has 1 voxels that are NaN or infinite"):
        read(picture(tmp_path / "f.tif", np.array([[0, np.nan], [1, 2]], np.float32)))
    with refused("b.nii' must be one 3-D volume, got shape [4, 5, 3, 2]"):
        read(write_nifti(tmp_path / "b.nii", np.zeros((4, 5, 3, 2), np.int16)))
    with refused("gone.png' does not exist", error=MissingFileError):
        read(tmp_path / "gone.png")
    (tmp_path / "a.gif").write_bytes(b"x")
    with refused("a.gif' is of no known format"):
        read(tmp_path / "a.gif")
    wrong: object
    for wrong in (3, -4, "0", 1.5, True):
        with refused("array_slice_axis must be 0, 1 or 2", f"got {wrong!r}"):
            LoadUnlabeledd(array_slice_axis=wrong)  # type: ignore[arg-type]


def test_missing_h5py_is_reported(tmp_path, monkeypatch):
    path = save_h5(tmp_path / "a.h5", image=np.zeros((4, 5)))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with refused(f"reading '{path}' needs h5py; run pip install 'samora_monai[prepare]'"):
        read(path)


def test_scaling_of_volumes_with_units(tmp_path, write_nifti):
    path = write_nifti(tmp_path / "a.nii", VOLUME)
    np.testing.assert_allclose(scaled(path), np.clip((VOLUME + 125) / 400, 0, 1), atol=1e-6)
    np.testing.assert_allclose(scaled(path, window=(0, 100)), np.clip(VOLUME / 100, 0, 1), atol=1e-6)
    low, high = np.percentile(VOLUME, [10, 90])
    out = scaled(path, modality="MR", percentiles=(10, 90))
    np.testing.assert_allclose(out, np.clip((VOLUME - low) / (high - low), 0, 1), atol=1e-5)
    by_others = ScaleUnlabeledd("image")({"image": torch.tensor([[[[75.0]]]])})  # not read by our loader
    assert float(by_others["image"]) == 0.5


def test_scaling_of_pictures(tmp_path):
    """8 bits by their range, so that a dark picture stays dark; wider ones by their percentiles."""
    dark = PICTURE // 4
    np.testing.assert_allclose(
        scaled(picture(tmp_path / "a.png", dark)), dark[::-1, ::-1].T[..., None] / 255, atol=1e-7
    )
    wide = PICTURE.astype(np.uint16) * 200
    low, high = np.percentile(wide, [5, 95])
    expected = np.clip((AS_RAS * 200 - low) / (high - low), 0, 1)
    for name, array in (("b.png", wide), ("b.tif", wide.astype(np.float32))):
        out = scaled(picture(tmp_path / name, array), modality="CT", percentiles=(5, 95))
        np.testing.assert_allclose(out, expected, atol=1e-5)
    assert not scaled(picture(tmp_path / "c.png", np.full((5, 7), 999, np.uint16))).any()


@pytest.mark.parametrize("intensity", ["volume_zscore", "slice_zscore"])
def test_z_scores_are_of_pictures_and_arrays_too(tmp_path, write_nifti, intensity):
    """Slices of a volume along Z, whatever its slice axis was; 8-bit pictures and arrays in [0, 1] as their volumes."""
    settings = {"modality": "MR", "intensity": intensity, "slice_axis": 0}
    grey = VOLUME.astype(np.float64)
    axes = (0, 1) if intensity == "slice_zscore" else (0, 1, 2)
    expected = np.clip(0.5 + (grey - grey.mean(axes, keepdims=True)) / grey.std(axes, keepdims=True) / 6, 0, 1)
    np.testing.assert_allclose(scaled(write_nifti(tmp_path / "a.nii", VOLUME), **settings), expected, atol=1e-5)
    np.save(tmp_path / "unit.npy", (grey + 500) / 1000)
    np.testing.assert_allclose(scaled(tmp_path / "unit.npy", **settings), expected, atol=1e-5)
    z = (AS_RAS - AS_RAS.mean()) / AS_RAS.std()
    np.testing.assert_allclose(
        scaled(picture(tmp_path / "a.png", PICTURE), **settings), np.clip(0.5 + z / 6, 0, 1), atol=1e-5
    )


def test_scaling_of_arrays(tmp_path):
    unit = RNG.random((6, 6, 4), dtype=np.float32)
    np.save(tmp_path / "unit.npy", unit)
    np.testing.assert_array_equal(scaled(tmp_path / "unit.npy"), unit)
    np.testing.assert_array_equal(scaled(tmp_path / "unit.npy", modality="MR"), unit)
    np.save(tmp_path / "hu.npy", VOLUME)
    np.testing.assert_allclose(scaled(tmp_path / "hu.npy"), np.clip((VOLUME + 125) / 400, 0, 1), atol=1e-6)
    low, high = np.percentile(VOLUME, [0.5, 99.5])
    expected = np.clip((VOLUME - low) / (high - low), 0, 1)
    np.testing.assert_allclose(scaled(tmp_path / "hu.npy", modality="MR"), expected, atol=1e-5)
