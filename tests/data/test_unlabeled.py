"""Finding unlabelled scans: every format, no label maps, a held-out part that is never trained on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samora_monai.data import find_images, find_unlabeled
from samora_monai.data.unlabeled import format_of
from samora_monai.errors import MissingFileError
from tests.tiny import refused


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode().ljust(200, b"x"))


def names(items, root):
    return [str(Path(item["image"]).relative_to(root)) for item in items]


def found(root, **settings):
    return names(find_unlabeled(root, validation_fraction=0, **settings).training, root)


def test_mixed_tree(tmp_path, write_dicom):
    touch(tmp_path, "a.nii.gz", "b.NII", "c/d.mha", "c/e.mhd", "c/e.raw", "f.nrrd", "g.npy", "h.npz", "i.h5", "j.hdf5")
    touch(tmp_path, "p/k.png", "p/l.jpg", "p/m.JPEG", "p/n.tif", "p/o.tiff", "p/notes.txt", "p/.q.png", ".r/s.png")
    write_dicom(tmp_path / "ct_1", np.zeros((2, 4, 4), np.int16))
    (tmp_path / "p" / "loop").symlink_to(tmp_path)
    scans = find_unlabeled(str(tmp_path), validation_fraction=0)
    assert [(item["image"], item["format"]) for item in scans.training] == [
        (f"{tmp_path}/{name}", kind)
        for name, kind in (
            ("a.nii.gz", "NIfTI"), ("b.NII", "NIfTI"), ("c/d.mha", "MHA"), ("c/e.mhd", "MHA"), ("ct_1", "DICOM"),
            ("f.nrrd", "NRRD"), ("g.npy", "npy"), ("h.npz", "npz"), ("i.h5", "HDF5"), ("j.hdf5", "HDF5"),
            ("p/k.png", "PNG"), ("p/l.jpg", "JPEG"), ("p/m.JPEG", "JPEG"), ("p/n.tif", "TIFF"), ("p/o.tiff", "TIFF"),
        )
    ]  # fmt: skip
    assert scans.counts() == {
        "NIfTI": 2, "MHA": 2, "NRRD": 1, "npy": 1, "npz": 1, "HDF5": 2, "PNG": 1, "JPEG": 2, "TIFF": 2, "DICOM": 1
    }  # fmt: skip
    assert (scans.validation, scans.source, scans.label_folders) == ((), str(tmp_path), ())


def test_the_scans_to_segment_are_no_labels(tmp_path, capsys):
    touch(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "b.nii.gz", "b_seg.nii.gz", "p/c.mha", "p/c.png")
    scans = find_images(tmp_path, tmp_path / "out")
    assert [str(Path(scan["image"]).relative_to(tmp_path)) for scan in scans] == [
        "b.nii.gz",
        "imagesTr/a.nii.gz",
        "p/c.mha",
    ]
    line = "left out, as their names mark them as label maps: 'labelsTr', 'b_seg.nii.gz'\n"
    assert capsys.readouterr().out == line
    assert len(find_images(tmp_path / "labelsTr")) == len(find_images(tmp_path / "b_seg.nii.gz")) == 1  # as asked for
    assert capsys.readouterr().out == ""
    touch(tmp_path / "only", "a_seg.nii.gz")
    with refused("no scan in"):
        find_images(tmp_path / "only")
    assert capsys.readouterr().out == "left out, as their names mark them as label maps: 'a_seg.nii.gz'\n"


def test_labels_are_skipped_and_named(tmp_path):
    folders = ("labelsTr", "Labels", "label", "p1/MASK", "masks", "seg", "segmentation", "p1/segmentations")
    touch(tmp_path, *(f"{folder}/a.nii" for folder in folders), "segments/a.nii", "maskrcnn/a.nii", "imagesTr/a.nii")
    files = (
        "kits/segmentation.nii.gz",
        "lits/segmentation-0.nii",
        "promise/Case00_segmentation.mhd",
        "isic/1_MASK.png",
    )
    others = ("kits/imaging.nii.gz", "lits/volume-0.nii", "promise/Case00.mhd", "isic/1.png", "msk/goat.png")
    touch(tmp_path, *files, *others)
    scans = find_unlabeled(tmp_path, validation_fraction=0)
    kept = sorted(("segments/a.nii", "maskrcnn/a.nii", "imagesTr/a.nii", *others))
    assert names(scans.training, tmp_path) == kept
    assert scans.label_folders == tuple(sorted(f"{tmp_path}/{folder}" for folder in folders))
    assert scans.label_files == tuple(sorted(f"{tmp_path}/{file}" for file in files))
    assert found(tmp_path / "seg") == ["a.nii"]  # one that is asked for by name is searched
    with refused("nothing to learn from in", "2 files or folders are named as labels"):
        find_unlabeled(tmp_path / "p1")


def test_held_out_part(tmp_path):
    """A fraction of the files, by the seed, whatever the order of the roots and however often one is named."""
    touch(tmp_path, *(f"{folder}/{k:02d}.png" for folder in "ab" for k in range(15)))
    roots = [tmp_path / "b", tmp_path / "a"]
    scans = find_unlabeled(roots, seed=3)
    assert (len(scans.training), len(scans.validation)) == (27, 3)
    assert not set(names(scans.training, tmp_path)) & set(names(scans.validation, tmp_path))
    assert scans.source == f"{tmp_path}/a, {tmp_path}/b"
    again = find_unlabeled([*reversed(roots), tmp_path / "a" / "00.png", roots[0]], seed=3)
    assert (again.training, again.validation) == (scans.training, scans.validation)
    assert scans.validation != find_unlabeled(roots, seed=4).validation
    held_out = [find_unlabeled(roots, seed=seed).validation for seed in range(40)]
    assert len({item["image"] for items in held_out for item in items}) == 30
    assert len(find_unlabeled(roots, validation_fraction=0.5).validation) == 15


@pytest.mark.parametrize(("count", "fraction", "expected"), [(1, 0.1, 0), (2, 0.1, 1), (2, 0.99, 1), (9, 0, 0)])
def test_small_held_out_parts(tmp_path, count, fraction, expected):
    touch(tmp_path, *(f"{k}.png" for k in range(count)))
    scans = find_unlabeled(tmp_path, validation_fraction=fraction)
    assert (len(scans.training), len(scans.validation)) == (count - expected, expected)


def test_a_file_counts_once(tmp_path):
    touch(tmp_path, "a/x.png", "a/y.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "z.png").symlink_to(tmp_path / "a" / "x.png")
    (tmp_path / "c").symlink_to(tmp_path / "a")
    assert found(tmp_path) == ["a/x.png", "a/y.png"]
    both = [find_unlabeled(roots, validation_fraction=0) for roots in ([tmp_path / "b", tmp_path / "a"], [tmp_path])]
    assert both[0].training == both[1].training


@pytest.fixture
def listed(tmp_path):
    """A data set with lists, and a file that is in none."""
    touch(tmp_path, *(f"images/{case}.nii.gz" for case in "abvux"), *(f"labels/{case}.nii.gz" for case in "abv"))
    entries = {case: {"image": f"images/{case}.nii.gz", "label": f"labels/{case}.nii.gz"} for case in "abv"}
    header = {
        "training": [entries["b"], entries["a"]],
        "validation": [entries["v"]],
        "unlabeled": [{"image": "images/u.nii.gz"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(header))
    return tmp_path


def test_datalist_states_what_is_held_out(listed, tmp_path_factory):
    for fraction in (0, 0.9):
        scans = find_unlabeled(listed, validation_fraction=fraction)
        assert names(scans.training, listed) == [f"images/{case}.nii.gz" for case in "abu"]
        assert scans.validation == ({"image": f"{listed}/images/v.nii.gz", "format": "NIfTI"},)
    os.rename(listed / "dataset.json", listed / "few.json")
    assert len(find_unlabeled(listed, "few.json").training) == 3
    assert found(listed) == [f"images/{case}.nii.gz" for case in "abuvx"]  # without a list: the tree
    with refused("few.json' does not exist", error=MissingFileError):
        find_unlabeled(listed / "images", "few.json")


def test_what_a_datalist_holds_out_is_never_trained_on(listed, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "link.nii.gz").symlink_to(listed / "images" / "v.nii.gz")
    touch(other, "y.png", "z.png")
    for roots in ([listed, other, listed / "images"], [listed / "images", other, listed]):
        scans = find_unlabeled(roots, validation_fraction=0.4)
        free = {"x.nii.gz", "y.png", "z.png"}  # the tree `images` minus what is listed, and the other root
        held_out = {Path(item["image"]).name for item in scans.validation}
        assert "v.nii.gz" in held_out or "link.nii.gz" in held_out
        assert len(held_out & free) == 1
        assert len(scans.validation) == 2
        trained = {Path(item["image"]).name for item in scans.training}
        assert trained == (free - held_out) | {f"{case}.nii.gz" for case in "abu"}


def test_dataset_json_without_lists(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "imagesTs/b_0000.nii.gz")
    (tmp_path / "dataset.json").write_text('{"channel_names": {"0": "CT"}, "labels": {"background": 0}}')
    assert found(tmp_path) == ["imagesTr/a_0000.nii.gz", "imagesTs/b_0000.nii.gz"]
    (tmp_path / "dataset.json").write_text("{'training'")
    with refused("dataset.json' is not valid JSON"):
        find_unlabeled(tmp_path)


def test_refused(tmp_path):
    everything = "looked for files (.nii.gz, .nii, .mha, .mhd, .nrrd, .npy, .npz, .h5, .hdf5, .png, .jpg, .jpeg, .tif,"
    with refused(f"nothing to learn from in '{tmp_path}'", everything, "DICOM series"):
        find_unlabeled(tmp_path)
    with refused("nowhere' does not exist", error=MissingFileError):
        find_unlabeled([tmp_path / "nowhere"])
    with refused("no folder with unlabelled scans was given"):
        find_unlabeled([])
    touch(tmp_path, "a.gif", "b.png")
    with refused("a.gif' is of no known format; expected files (.nii.gz"):
        find_unlabeled(tmp_path / "a.gif")
    with refused("a.gif' is of no known format"):
        format_of(tmp_path / "a.gif")
    wrong: Any
    for wrong in (1, -0.1, "0.1", True, None):
        with refused("validation_fraction must be at least 0 and below 1", f"got {wrong!r}"):
            find_unlabeled(tmp_path, validation_fraction=wrong)


def test_a_folder_of_validation_images_is_held_out_without_a_datalist(tmp_path):
    """The segmentation bundle's layout: what it validates on must not be trained on here."""
    touch(tmp_path, "imagesTr/a.nii.gz", "imagesTr/b.nii.gz", "imagesVal/c.nii.gz", "labelsVal/c.nii.gz")
    scans = find_unlabeled(tmp_path, validation_fraction=0)
    assert names(scans.validation, tmp_path) == ["imagesVal/c.nii.gz"]
    assert names(scans.training, tmp_path) == ["imagesTr/a.nii.gz", "imagesTr/b.nii.gz"]


def test_a_data_set_below_the_root_keeps_its_own_held_out_scans(tmp_path):
    touch(tmp_path, "inner/a.nii.gz", "inner/b.nii.gz", "free.nii.gz")
    lists = {"unlabeled": [{"image": "a.nii.gz"}], "validation": [{"image": "b.nii.gz", "label": "b.nii.gz"}]}
    (tmp_path / "inner" / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}} | lists))
    scans = find_unlabeled(tmp_path, validation_fraction=0)
    assert names(scans.validation, tmp_path) == ["inner/b.nii.gz"]
    assert names(scans.training, tmp_path) == ["free.nii.gz", "inner/a.nii.gz"]
    assert scans.modality == "MR"


def test_of_a_datalist_without_held_out_scans_a_part_is_held_out(tmp_path):
    files = [f"{i}.nii.gz" for i in range(4)]
    touch(tmp_path, *files)
    (tmp_path / "dataset.json").write_text(json.dumps({"unlabeled": [{"image": file} for file in files]}))
    scans = find_unlabeled(tmp_path, validation_fraction=0.25)
    assert (len(scans.training), len(scans.validation)) == (3, 1)


def test_a_root_may_hold_only_data_sets_without_held_out_scans(tmp_path):
    touch(tmp_path, "inner/a.nii.gz", "inner/b.nii.gz")
    lists = {"unlabeled": [{"image": "a.nii.gz"}, {"image": "b.nii.gz"}]}
    (tmp_path / "inner" / "dataset.json").write_text(json.dumps(lists))
    assert found(tmp_path) == ["inner/a.nii.gz", "inner/b.nii.gz"]
