"""Reading, checking and scaling of one case."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import EnsureChannelFirstd, LoadImaged

from samora_monai.data import CheckCased, LoadCased, ScaleScand
from samora_monai.errors import InputError, MissingFileError


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
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"cannot read '.*/folder': .*no DICOMs"):
        LoadCased("image")({"image": str(tmp_path / "folder")})


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
    with pytest.raises(InputError, match=r"image 's/i.nii.gz' lies nowhere in space: its affine \[\[1.0, .*header"):
        CheckCased("image")({"image": image})


def test_label_on_another_grid(tmp_path, write_nifti):
    image = write_nifti(tmp_path / "i.nii.gz")
    other_shape = write_nifti(tmp_path / "l.nii.gz", np.zeros((4, 5, 2), np.uint8))
    names = r"label '.*/l.nii.gz' does not lie on the grid of image '.*/i.nii.gz'"
    with pytest.raises(InputError, match=names + r": shape \[4, 5, 2\], expected \[4, 5, 3\]; resample"):
        CheckCased("image")(load({"image": image, "label": other_shape}))
    moved = np.eye(4)
    moved[2, 3] = 246
    write_nifti(tmp_path / "l.nii.gz", np.zeros((4, 5, 3), np.uint8), moved)
    both = r"label \[.*246.0\]\], image \[\[1.0, 0.0, 0.0, 0.0\]"
    with pytest.raises(InputError, match=names + ": affines differ by up to 246 mm, " + both):
        CheckCased("image")(load({"image": image, "label": tmp_path / "l.nii.gz"}))


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


def test_ct_window():
    hu = torch.tensor([-1000.0, -125, -25, 75, 275, 3000]).reshape(1, 1, 2, 3)
    out = ScaleScand("image")({"image": MetaTensor(hu), "model": "kept"})["image"]
    torch.testing.assert_close(out.as_tensor().flatten(), torch.tensor([0, 0, 0.25, 0.5, 1, 1]))
    narrow = ScaleScand("image", window=[0, 100])({"image": hu})["image"]
    torch.testing.assert_close(torch.as_tensor(narrow).flatten(), torch.tensor([0, 0, 0, 0.75, 1, 1]))


def test_mr_percentiles():
    grey = torch.arange(1001, dtype=torch.float32).reshape(1, 7, 11, 13)
    out = ScaleScand("image", modality="MR", percentiles=(10, 90))({"image": grey})["image"]
    expected = ((grey - 100) / 800).clamp(0, 1)
    torch.testing.assert_close(torch.as_tensor(out), expected)


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_constant_mr_volume_becomes_zeros(value):
    out = ScaleScand("image", modality="MR")({"image": torch.full((1, 2, 3, 4), value)})["image"]
    assert out.shape == (1, 2, 3, 4)
    assert not out.any()


@pytest.mark.filterwarnings("ignore:Divide by zero")
def test_mr_volume_that_is_nearly_all_background():
    grey = torch.zeros(1, 10, 10, 10)
    grey[0, 0, 0, 0] = 500
    out = ScaleScand("image", modality="MR")({"image": grey})["image"]
    torch.testing.assert_close(torch.as_tensor(out), grey / 500)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"modality": "PET"}, "modality must be 'CT' or 'MR', got 'PET'"),
        (
            {"window": (275, -125)},
            r"window must be two increasing numbers, got \(275, -125\); use for example --window",
        ),
        ({"window": 400}, "window must be two increasing numbers, got 400"),
        ({"window": "[-125,275"}, r"window must be two increasing numbers, got '\[-125,275'"),
        ({"percentiles": (0.5, 101)}, "percentiles must be two increasing numbers"),
    ],
)
def test_scale_settings_refused(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        ScaleScand("image", **settings)
