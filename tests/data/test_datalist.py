"""Cases from datalists and folders, and the sentences for what is wrong with them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samora_monai.data import Cases, find_cases, require_validation, scans
from samora_monai.errors import InputError, MissingFileError
from tests.tiny import refused


@pytest.fixture
def dataset(tmp_path, write_nifti):
    """Three training scans, one for validation, one unlabelled, in a Decathlon-style folder."""
    for value, case in enumerate("abcvu"):
        write_nifti(tmp_path / "images" / f"{case}.nii.gz", np.full((4, 5, 3), value, np.int16))
    for case in "abcv":
        write_nifti(tmp_path / "labels" / f"{case}.nii.gz")
    entries = {case: {"image": f"./images/{case}.nii.gz", "label": f"labels/{case}.nii.gz"} for case in "abcv"}
    header = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "atrium"},
        "training": [entries[case] for case in "abc"],
        "validation": [entries["v"]],
        "unlabeled": [{"image": "images/u.nii.gz"}],
    }
    return tmp_path, header


def save(folder, header, name="dataset.json"):
    (folder / name).write_text(json.dumps(header))


def test_decathlon_list(dataset):
    folder, header = dataset
    save(folder, header)
    assert find_cases(folder) == Cases(
        training=tuple(
            {"image": f"{folder}/images/{case}.nii.gz", "label": f"{folder}/labels/{case}.nii.gz"} for case in "abc"
        ),
        validation=({"image": f"{folder}/images/v.nii.gz", "label": f"{folder}/labels/v.nii.gz"},),
        unlabeled=({"image": f"{folder}/images/u.nii.gz"},),
        class_names=("background", "atrium"),
        modality="MR",
        source=f"{folder}/dataset.json",
    )


def test_datalist_by_another_name_and_by_absolute_path(dataset, tmp_path_factory):
    folder, header = dataset
    header["val"] = header.pop("validation")
    save(folder, header, "dataset_4.json")
    elsewhere = tmp_path_factory.mktemp("lists")
    save(elsewhere, header)
    named = find_cases(folder, "dataset_4.json")
    absolute = find_cases(folder, elsewhere / "dataset.json")
    assert len(named.validation) == 1
    assert named.training == absolute.training  # paths are relative to the data folder, not to the list


def test_num_labeled_keeps_the_first(dataset):
    folder, header = dataset
    save(folder, header)
    assert [case["image"][-8:] for case in find_cases(folder, num_labeled=2).training] == ["a.nii.gz", "b.nii.gz"]
    wrong: Any
    for wrong in (0, 4, "2", 1.5, True):
        with pytest.raises(InputError, match=f"from 1 to 3 .*got {wrong!r}; use --num_labeled 3"):
            find_cases(folder, num_labeled=wrong)


@pytest.mark.parametrize(
    ("header", "names", "modality"),
    [
        ({"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "CT"}}, ("background", "liver"), "CT"),
        ({"labels": {"1": "liver", "0": "bg"}, "modality": {"0": "T1w"}}, ("bg", "liver"), "MR"),
        ({"modality": "MR"}, None, "MR"),
        ({"modality": {"0": "cineMRI"}}, None, "MR"),
        ({"modality": {"0": "PET"}}, None, None),
        ({"channel_names": {"0": "FLAIR", "1": "T2"}}, None, "MR"),
    ],
)
def test_names_and_modality(dataset, header, names, modality):
    folder, base = dataset
    save(folder, {"training": base["training"]} | header)
    cases = find_cases(folder)
    assert (cases.class_names, cases.modality) == (names, modality)


def test_plain_folders_with_nnunet_names(tmp_path, write_nifti):
    """nnU-Net's `dataset.json` states names but lists no files."""
    names = ("imagesTr/p_0000", "labelsTr/p", "imagesTr/q_0000", "labelsTr/q", "imagesVal/r", "labelsVal/r")
    for value, name in enumerate(names):
        write_nifti(tmp_path / f"{name}.nii.gz", np.full((4, 5, 3), value, np.int16))
    write_nifti(tmp_path / "imagesUnlabeled" / "s.nii")
    assert find_cases(tmp_path).source == str(tmp_path)
    save(tmp_path, {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "numTraining": 2})
    cases = find_cases(tmp_path)
    assert cases.training == tuple(
        {"image": f"{tmp_path}/imagesTr/{case}_0000.nii.gz", "label": f"{tmp_path}/labelsTr/{case}.nii.gz"}
        for case in "pq"
    )
    assert [case["image"] for case in cases.validation + cases.unlabeled] == [
        f"{tmp_path}/imagesVal/r.nii.gz",
        f"{tmp_path}/imagesUnlabeled/s.nii",
    ]
    assert (cases.class_names, cases.modality) == (("background", "liver"), "CT")


def test_missing_things_are_named(dataset):
    folder, header = dataset
    with pytest.raises(MissingFileError, match=f"data folder '{folder}/nowhere' does not exist"):
        find_cases(folder / "nowhere")
    with pytest.raises(MissingFileError, match=r"datalist '.*/other.json' does not exist"):
        find_cases(folder, "other.json")
    with pytest.raises(InputError, match=r"no cases in '.*'; expected dataset.json, or folders imagesTr and labelsTr"):
        find_cases(folder)
    header["training"][1]["label"] = "labels/gone.nii.gz"
    save(folder, header)
    with pytest.raises(MissingFileError, match=r"^'.*/labels/gone.nii.gz' in '.*dataset.json' does not exist"):
        find_cases(folder)
    header["unlabeled"] = [{"image": "x.nii"}, {"image": "y.nii"}]
    save(folder, header)
    with pytest.raises(MissingFileError, match=r"^'.*/gone.nii.gz' and 2 more listed files in '.*' do not exist"):
        find_cases(folder)


def test_image_without_label_and_the_reverse(tmp_path, write_nifti):
    write_nifti(tmp_path / "imagesTr" / "a.nii.gz")
    with pytest.raises(MissingFileError, match=r"folder '.*/labelsTr' does not exist"):
        find_cases(tmp_path)
    write_nifti(tmp_path / "labelsTr" / "b.nii.gz")
    with pytest.raises(InputError, match=r"image '.*/imagesTr/a.nii.gz' has no label; expected .*labelsTr/a'?.nii.gz"):
        find_cases(tmp_path)
    write_nifti(tmp_path / "labelsTr" / "a.nii.gz")
    with pytest.raises(InputError, match=r"label '.*/labelsTr/b.nii.gz' has no image in '.*/imagesTr'"):
        find_cases(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"training": [{"image": "images/a.nii.gz"}]}, "'training' in .* expected one path each for image and label"),
        ({"training": ["images/a.nii.gz"]}, 'has the entry "images/a.nii.gz"; expected one path each'),
        ({"unlabeled": [{"image": ["x.nii", "y.nii"]}]}, "'unlabeled' in .* expected one path each for image$"),
        ({"labels": {"0": "bg", "2": "liver"}}, "must number the classes 0, 1, 2, ... without gaps, got 0, 2"),
        ({"labels": {"bg": 0, "whole": [1, 2]}}, "must name each label value, as in"),
        ({"labels": ["bg", "liver"]}, "must name each label value, as in"),
        ({"training": [], "validation": [], "unlabeled": []}, "lists no scans; expected dataset.json, or folders"),
    ],
)
def test_malformed_lists(dataset, change, sentence):
    folder, header = dataset
    save(folder, header | change)
    with pytest.raises(InputError, match=sentence) as error:
        find_cases(folder)
    assert "\n" not in str(error.value)


def test_not_json(dataset):
    folder, _ = dataset
    (folder / "dataset.json").write_text("{'training': []}")
    with pytest.raises(InputError, match=r"dataset.json' is not valid JSON: Expecting property name .* line 1"):
        find_cases(folder)
    (folder / "dataset.json").write_text("[]")
    with pytest.raises(InputError, match="must hold an object with a list 'training', got list"):
        find_cases(folder)


def test_scan_listed_twice(dataset):
    """The second result would replace the first."""
    folder, header = dataset
    header["validation"].append({"image": "images/v.nii.gz", "label": "labels/a.nii.gz"})
    save(folder, header)
    with pytest.raises(InputError, match=r"lists '.*images/v.nii.gz' for validation more than once; list each scan"):
        find_cases(folder)


@pytest.mark.parametrize("name", ["images/b.nii.gz", "images/../images/b.nii.gz", "images/link.nii.gz"])
def test_scan_listed_twice_for_training(dataset, name):
    """Also by another path or through a link."""
    folder, header = dataset
    (folder / "images" / "link.nii.gz").symlink_to(folder / "images" / "b.nii.gz")
    header["training"].append({"image": name, "label": "labels/a.nii.gz"})
    save(folder, header)
    with refused("dataset.json' lists '", f"{Path(name).name}' for training more than once; list each scan once"):
        find_cases(folder)


def test_scan_in_training_and_validation(dataset):
    """A link to a training scan is that scan."""
    folder, header = dataset
    (folder / "images" / "link.nii.gz").symlink_to(folder / "images" / "b.nii.gz")
    header["validation"].append({"image": "images/link.nii.gz", "label": "labels/b.nii.gz"})
    save(folder, header)
    sentence = f"'{folder}/images/link.nii.gz' is in training and in validation of"
    with pytest.raises(InputError, match=re.escape(sentence)):
        find_cases(folder)


def test_copy_of_a_training_scan_in_validation(dataset, monkeypatch):
    """A copy under another name is found by its content; only scans of equal size are opened."""
    folder, header = dataset
    save(folder, header)
    shutil.copy(folder / "images" / "b.nii.gz", folder / "images" / "other.nii.gz")
    header["validation"].append({"image": "images/other.nii.gz", "label": "labels/b.nii.gz"})
    save(folder, header)
    with refused(f"'{folder}/images/other.nii.gz' in validation of", f"is a copy of '{folder}/images/b.nii.gz' in"):
        find_cases(folder)
    content = bytearray((folder / "images" / "b.nii.gz").read_bytes())
    content[4] ^= 1  # gzip's time: the same size, and the same part in the middle
    (folder / "images" / "other.nii.gz").write_bytes(content)
    assert len(find_cases(folder).validation) == 2
    monkeypatch.setattr(scans, "_sample", lambda scan: pytest.fail(f"{scan} was opened"))
    (folder / "images" / "other.nii.gz").write_bytes(content + b"\0")
    (folder / "images" / "v.nii.gz").write_bytes(content + b"\0\0")
    assert len(find_cases(folder).validation) == 2


def test_copy_of_a_dicom_series_in_validation(dataset, write_dicom):
    folder, header = dataset
    write_dicom(folder / "images" / "series", np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    shutil.copytree(folder / "images" / "series", folder / "images" / "moved")
    header["training"].append({"image": "images/series", "label": "labels/a.nii.gz"})
    header["validation"].append({"image": "images/moved", "label": "labels/a.nii.gz"})
    save(folder, header)
    with refused("images/moved' in validation of", "is a copy of"):
        find_cases(folder)
    write_dicom(folder / "images" / "moved", np.arange(60, dtype=np.int16).reshape(3, 4, 5)[::-1].copy())
    assert len(find_cases(folder).validation) == 2


def test_required_validation(dataset):
    folder, header = dataset
    save(folder, header)
    assert [case["image"] for case in require_validation(find_cases(folder))] == [f"{folder}/images/v.nii.gz"]
    del header["validation"]
    save(folder, header)
    with refused("no validation scans in '", "add a list 'validation' to the datalist, or fill imagesVal/"):
        require_validation(find_cases(folder))
