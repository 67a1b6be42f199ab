"""Labelled and unlabelled scans in every layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from samora_monai.pipeline.folders import find_folder
from tests.data.dicom import write_dicom
from tests.pipeline.scans import ct, labels
from tests.tiny import refused

LAYOUTS = {  # files of one labelled scan, a, and one without a label, b
    "nnU-Net": ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "imagesTs/b_0000.nii.gz"),
    "Decathlon without labels for all": ("imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "imagesTr/b.nii.gz"),
    "folders of this package": ("imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "imagesUnlabeled/b.nii.gz"),
    "MONAI Label": ("a.nii.gz", "labels/final/a.nii.gz", "b.nii.gz"),
    "two folders": ("images/a.nii.gz", "labels/a.nii.gz", "images/b.nii.gz"),
    "other names of folders": ("scans/a.nii", "masks/a.nii.gz", "more/b.nii.gz"),
    "side by side": ("a.nii.gz", "a_seg.nii.gz", "b.nii.gz"),
    "LiTS": ("volume-0.nii.gz", "segmentation-0.nii.gz", "volume-1.nii.gz"),
    "KiTS": ("case_0/imaging.nii.gz", "case_0/segmentation.nii.gz", "case_1/imaging.nii.gz"),
    "apart": ("labelled/images/a.nii.gz", "labelled/labels/a.nii.gz", "unlabelled/b.nii.gz"),
    "words of folders in the name": ("p1/a.nii.gz", "labels/p1_a.nii.gz", "p2/a.nii.gz"),
    "a label without a name": ("p1/T1w_001/x.nii.gz", "p1/labels/seg.nii.gz", "p2/T1w_001/x.nii.gz"),
    "in folders of patients": ("p1/a.nii.gz", "labels/p1/a.nii.gz", "p2/a.nii.gz"),
}


@pytest.mark.parametrize("files", LAYOUTS.values(), ids=LAYOUTS)
def test_a_label_finds_its_scan(files: tuple[str, str, str], tmp_path: Path):
    image, label, other = (tmp_path / file for file in files)
    ct(image), labels(label, 1), ct(other, seed=1)
    cases = find_folder(tmp_path)
    assert cases.training == ({"image": str(image), "label": str(label)},)
    assert cases.unlabeled == ({"image": str(other)},)
    assert cases.validation == () and cases.class_names is None and cases.modality is None


def test_dicom_folders_and_pictures(tmp_path: Path):
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    for name in ("dicom/a", "b", "c"):
        write_dicom(tmp_path / name, array)
    labels(tmp_path / "labels/a.nii.gz", 1), labels(tmp_path / "b/label.nii.gz", 1)
    np.save(tmp_path / "d.npy", array)
    cases = find_folder(tmp_path)
    assert {case["image"]: case["label"] for case in cases.training} == {
        str(tmp_path / "dicom/a"): str(tmp_path / "labels/a.nii.gz"),
        str(tmp_path / "b"): str(tmp_path / "b/label.nii.gz"),
    }
    assert [case["image"] for case in cases.unlabeled] == [str(tmp_path / "c"), str(tmp_path / "d.npy")]


def test_a_label_beside_the_folder_of_its_series(tmp_path: Path):
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    for name in ("p1/DICOM", "p2/ST01/SE01", "p3/DICOM"):
        write_dicom(tmp_path / name, array)
    for name in ("p1/seg", "p2/label"):
        labels(tmp_path / f"{name}.nii.gz", 1)
    cases = find_folder(tmp_path)
    assert [case["image"] for case in cases.training] == [str(tmp_path / "p1/DICOM"), str(tmp_path / "p2/ST01/SE01")]
    assert [case["image"] for case in cases.unlabeled] == [str(tmp_path / "p3/DICOM")]


def test_a_label_is_not_given_to_a_scan_of_its_name_in_another_folder(tmp_path: Path):
    ct(tmp_path / "siteA/p2.nii.gz"), labels(tmp_path / "siteA/labels/p2.nii.gz", 1)
    other, label = ct(tmp_path / "siteB/p1.nii.gz", seed=1), labels(tmp_path / "siteA/labels/p1.nii.gz", 1)
    with refused(f"label '{label}' belongs to no scan: '{other}' has its name, but is in the folder of another"):
        find_folder(tmp_path)
    own = ct(tmp_path / "siteA/p1.nii.gz", seed=2)
    cases = find_folder(tmp_path)
    assert {"image": str(own), "label": str(label)} in cases.training
    assert cases.unlabeled == ({"image": str(other)},)


def test_a_test_set_beside_validation_scans_is_unlabelled(tmp_path: Path):
    for i, (folder, name) in enumerate((("Tr", "a"), ("Val", "b"), ("Ts", "c"))):
        ct(tmp_path / f"images{folder}/{name}.nii.gz", i), labels(tmp_path / f"labels{folder}/{name}.nii.gz", 1)
    ct(tmp_path / "imagesTs/d.nii.gz", 3)
    cases = find_folder(tmp_path)
    assert [Path(case["image"]).name for case in cases.unlabeled] == ["c.nii.gz", "d.nii.gz"]
    assert [Path(case["image"]).name for case in cases.validation] == ["b.nii.gz"]


@pytest.mark.parametrize("part", ["Val", "Ts"])
def test_scans_that_a_folder_holds_out_are_for_validation(part: str, tmp_path: Path):
    for folder, name in (("Tr", "a"), (part, "b")):
        ct(tmp_path / f"images{folder}/{name}.nii.gz"), labels(tmp_path / f"labels{folder}/{name}.nii.gz", 1)
    cases = find_folder(tmp_path)
    assert [Path(case["image"]).name for case in cases.training] == ["a.nii.gz"]
    assert [Path(case["label"]).parent.name for case in cases.validation] == [f"labels{part}"]


def test_nnunet_states_modality_and_classes(tmp_path: Path):
    ct(tmp_path / "imagesTr/a_0000.nii.gz"), labels(tmp_path / "labelsTr/a.nii.gz", 1)
    header = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(header))
    cases = find_folder(tmp_path)
    assert (cases.modality, cases.class_names) == ("CT", ("background", "liver"))


def test_a_datalist_is_read_by_its_name(tmp_path: Path):
    a, label, b = ct(tmp_path / "a.nii.gz"), labels(tmp_path / "l.nii.gz", 1), ct(tmp_path / "b.nii.gz")
    lists = {"training": [{"image": "a.nii.gz", "label": "l.nii.gz"}], "test": ["./b.nii.gz"]}
    (tmp_path / "dataset_1.json").write_text(json.dumps(lists | {"modality": {"0": "MRI"}}))
    for path in (tmp_path, tmp_path / "dataset_1.json"):
        cases = find_folder(path)
        assert cases.training == ({"image": str(a), "label": str(label)},)
        assert cases.unlabeled == ({"image": str(b)},) and cases.modality == "MR"
    shutil.copy(tmp_path / "dataset_1.json", tmp_path / "dataset_2.json")
    with refused("2 datalists (dataset_1.json, dataset_2.json)", "give the file"):
        find_folder(tmp_path)
    assert find_folder(tmp_path / "dataset_2.json").training == cases.training


def test_datalists_of_sub_folders_are_joined(tmp_path: Path):
    ct(tmp_path / "one/a.nii.gz"), labels(tmp_path / "one/l.nii.gz", 1), ct(tmp_path / "two/b.nii.gz", 1)
    header = {"modality": {"0": "CT"}, "training": [{"image": "a.nii.gz", "label": "l.nii.gz"}]}
    (tmp_path / "one/dataset.json").write_text(json.dumps(header))
    cases = find_folder(tmp_path)
    assert len(cases.training) == len(cases.unlabeled) == 1 and cases.modality == "CT"


def test_results_and_labels_of_a_model_are_not_searched(tmp_path: Path):
    ct(tmp_path / "a.nii.gz"), labels(tmp_path / "labels/final/a.nii.gz", 1), ct(tmp_path / "b.nii.gz", 1)
    labels(tmp_path / "labels/original/b.nii.gz", 1), labels(tmp_path / "run/predictions/b_seg.nii.gz", 1)
    labels(tmp_path / "old/predictions/b_seg.nii.gz", 1)
    (tmp_path / "old/plan.yaml").write_text("data:")
    cases = find_folder(tmp_path, tmp_path / "run")
    assert len(cases.training) == len(cases.unlabeled) == 1


def test_a_plan_that_failed_is_no_datalist(tmp_path: Path):
    ct(tmp_path / "a.nii.gz"), labels(tmp_path / "a_seg.nii.gz", 1), ct(tmp_path / "b.nii.gz", 1)
    failed = tmp_path / "run"
    for name, text in (("records/plan.json", "{}"), ("data/dataset.json", '{"training": [], "unlabeled": []}')):
        (failed / name).parent.mkdir(parents=True, exist_ok=True)
        (failed / name).write_text(text)
    cases = find_folder(tmp_path, tmp_path / "other")
    assert len(cases.training) == len(cases.unlabeled) == 1
    with refused(f"'{failed}' is the folder of a pipeline, not of scans"):
        find_folder(failed)


def test_folders_without_a_use_are_refused(tmp_path: Path):
    with refused("does not exist"):
        find_folder(tmp_path / "none")
    with refused(f"no scan in '{tmp_path}'", ".nii.gz"):
        find_folder(tmp_path)
    ct(tmp_path / "a.nii.gz")
    with refused("no labelled scan", "found 1 without labels", "a_seg.nii.gz", "samora select"):
        find_folder(tmp_path)
    assert len(find_folder(tmp_path, need_labels=False).unlabeled) == 1
    labels(tmp_path / "imagesVal/v.nii.gz", 1), labels(tmp_path / "labelsVal/v.nii.gz", 1)
    with refused("each of 1 labelled scans", "move one to training"):
        find_folder(tmp_path)


def test_labels_without_their_scan_are_refused(tmp_path: Path):
    ct(tmp_path / "a.nii.gz")
    label = labels(tmp_path / "labels/b.nii.gz", 1)
    with refused(f"label '{label}' belongs to no scan: no image has its name"):
        find_folder(tmp_path)
    ct(tmp_path / "one/b.nii.gz"), ct(tmp_path / "two/b.nii.gz")
    with refused("2 images have its name"):
        find_folder(tmp_path)


def test_unclear_pairs_are_refused(tmp_path: Path):
    image, label = ct(tmp_path / "a.nii.gz"), labels(tmp_path / "a_seg.nii.gz", 1)
    other = labels(tmp_path / "a_mask.nii.gz", 1)
    with refused(f"'{image}' has two labels", str(label), str(other)):
        find_folder(tmp_path)
    other.unlink()
    ct(tmp_path / "a_0000.nii.gz")
    with refused(f"label '{label}' fits", "one channel"):
        find_folder(tmp_path)
    (tmp_path / "a_0000.nii.gz").unlink()
    image.unlink()
    np.save(tmp_path / "a.npy", np.zeros((3, 4)))
    with refused("a.npy' has the label", "convert it to NIfTI"):
        find_folder(tmp_path)


def test_a_prediction_of_this_package_is_no_reference(tmp_path: Path):
    """`samora predict` may have written labels into the folder of the scans."""
    scan = np.zeros((4, 4, 4), np.int16)
    for name in ("a", "b"):
        nib.save(nib.Nifti1Image(scan, np.eye(4)), tmp_path / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(scan.astype(np.uint8), np.eye(4)), tmp_path / "a_seg.nii.gz")
    predicted = nib.Nifti1Image(scan.astype(np.uint8), np.eye(4))
    predicted.header["descrip"] = f"samora_monai:{'0' * 40}"
    nib.save(predicted, tmp_path / "b_seg.nii.gz")
    found = find_folder(tmp_path)
    assert [Path(case["image"]).name for case in found.training] == ["a.nii.gz"]
    assert [Path(case["image"]).name for case in found.unlabeled] == ["b.nii.gz"]


def test_letters_of_all_scripts_tell_names_apart(tmp_path: Path):
    scan = nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
    for name in ("images/张三", "images/李四", "labels/李四"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        nib.save(scan, tmp_path / f"{name}.nii.gz")
    found = find_folder(tmp_path)
    assert [Path(case["image"]).name for case in found.training] == ["李四.nii.gz"]
