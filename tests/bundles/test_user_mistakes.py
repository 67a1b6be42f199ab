"""Whatever a user gets wrong ends in one line that names it and says what to do, and leaves nothing behind."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.bundles.command_line import FAST, Bundle, files, refused
from tests.bundles.conftest import Trained
from tests.tiny import truncate

# ---- ways to spoil the data: each changes the folder and returns the words that the message must hold


def scan(data: Path, number: int = 1, kind: str = "images") -> Path:
    return data / f"{kind}{'Tr' if number <= 2 else 'Val'}" / f"phantom_{number:03d}.nii.gz"


def change(path: Path, how: Callable[[np.ndarray], np.ndarray]) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(how(np.asanyarray(image.dataobj)), image.affine), path)


def no_folder(data: Path) -> list[str]:
    shutil.rmtree(data)
    return [f"data folder '{data}' does not exist", "--dataset_dir"]


def empty_folder(data: Path) -> list[str]:
    no_folder(data)
    data.mkdir()
    return [f"no cases in '{data}'", "dataset.json", "imagesTr"]


def listed_label_missing(data: Path) -> list[str]:
    scan(data, kind="labels").unlink()
    return [f"'{scan(data, kind='labels')}'", "does not exist"]


def image_without_label(data: Path) -> list[str]:
    (data / "dataset.json").unlink()
    scan(data, kind="labels").unlink()
    return [f"image '{scan(data)}' has no label", f"'{scan(data, kind='labels')}'"]


def broken_datalist(data: Path) -> list[str]:
    (data / "dataset.json").write_text('{"training": [')
    return [f"datalist '{data}/dataset.json' is not valid JSON"]


def label_too_high(data: Path) -> list[str]:
    change(scan(data, kind="labels"), lambda x: np.where(x == 5, 9, x).astype(np.uint8))
    return [
        f"label '{scan(data, kind='labels')}'",
        "has the values 0, 1, 2, 3, 4, 9",
        "from 0 to 5",
        "--num_classes 10",
    ]


def label_of_another_shape(data: Path) -> list[str]:
    change(scan(data, kind="labels"), lambda x: x[:-1])
    return [f"label '{scan(data, kind='labels')}'", f"image '{scan(data)}'", "shape", "resample"]


def random_bytes(data: Path) -> list[str]:
    scan(data, 2).write_bytes(os.urandom(1000))
    return [f"cannot read '{scan(data, 2)}'"]


def truncated_training_scan(data: Path) -> list[str]:
    truncate(scan(data, 2))
    return [f"cannot read '{scan(data, 2)}'"]


def truncated_validation_label(data: Path) -> list[str]:
    truncate(scan(data, 4, "labels"))
    return [f"cannot read '{scan(data, 4, 'labels')}'"]


def nan_in_validation(data: Path) -> list[str]:
    def spoil(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float32)
        x[3, 4, 5], x[4, 4, 4] = np.nan, np.inf
        return x

    change(scan(data, 3), spoil)
    return [f"image '{scan(data, 3)}' has 2 voxels that are NaN or infinite"]


def four_dimensions(data: Path) -> list[str]:
    change(scan(data), lambda x: np.stack([x, x], -1))
    return [f"image '{scan(data)}'", "3-D", "shape"]


def of_another_modality(data: Path) -> list[str]:
    header = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(header | {"modality": {"0": "T2 MRI"}}))
    return ["the scans are MR, but modality is CT", "--modality MR"]


def without_validation(data: Path) -> list[str]:
    header = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(header | {"validation": []}))
    return ["no validation scans", "imagesVal"]


@pytest.mark.parametrize(
    "spoil",
    [
        no_folder,
        empty_folder,
        listed_label_missing,
        image_without_label,
        broken_datalist,
        label_too_high,
        label_of_another_shape,
        random_bytes,
        truncated_training_scan,
        truncated_validation_label,
        nan_in_validation,
        four_dimensions,
        of_another_modality,
        without_validation,
    ],
)
def test_training_on_spoiled_data(bundle: Bundle, data: Path, spoil: Callable[[Path], list[str]]):
    words = spoil(data)
    before = files(bundle.root)
    finished = bundle("training", dataset_dir=data, **FAST)
    refused(finished, *words)
    assert files(bundle.root) == before


@pytest.mark.parametrize("spoil", [empty_folder, truncated_validation_label, nan_in_validation, without_validation])
def test_evaluation_on_spoiled_data(trained: Trained, data: Path, tmp_path: Path, spoil: Callable[[Path], list[str]]):
    words = spoil(data)
    refused(trained.bundle("evaluating", dataset_dir=data, output_dir=tmp_path / "out"), *words)
    assert files(tmp_path / "out") == {}


# ---- wrong settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epoch": 1}, ["unknown setting 'epoch'", "did you mean 'epochs'"]),
        ({"modality": "MR"}, ["the scans are CT, but modality is MR", "--modality CT"]),
        ({"num_labeled": 3}, ["num_labeled must be a whole number from 1 to 2", "got 3"]),
        ({"slice_fraction": 0}, ["slice_fraction must be above 0"]),
        ({"num_classes": 1}, ["2 to 256 classes", "got 1"]),
        ({"window": "[275,-125]"}, ["window must be two increasing numbers"]),
        ({"rank": "low"}, ["'--rank' must be a number, got 'low'"]),
        ({"batch_size": 0}, ["batch_size must be a whole number of at least 1, got 0"]),
        ({"num_workers": -1}, ["num_workers must be a whole number of at least 0, got -1"]),
        ({"learning_rate": 0}, ["learning_rate must be a number above 0, got 0"]),
        ({"device": "cuda:99"}, ["device 'cuda:99' cannot be used", "--device cpu"]),
        ({"encoder": "vit_x"}, ["unknown encoder 'vit_x'", "vit_b"]),
        ({"image_size": 100}, ["image_size is 100", "multiple of 16"]),
        ({"trainable": "everything"}, ["'everything'", "'adapters', 'experts', 'decoder' or 'all'"]),
        ({"experts": "image"}, ["experts is 'image'", "list"]),
        ({"datalist": "fold_1.json"}, ["fold_1.json' does not exist"]),
        (
            {"fusion": "attention", "experts": "['image','patch','pixel']"},
            ["'image' has no file", "--image_expert FILE"],
        ),
        ({"patch_expert": "patch.pt"}, ["--patch_expert patch.pt", "--experts is ('task',)"]),
        ({"image_size": "[224,224]"}, ["image_size is [224, 224]", "multiple of 16"]),
        ({"rank": 2.5}, ["rank is 2.5", "whole"]),
        ({"rank": 1000}, ["rank is 1000 but the encoder is 128 wide"]),
        ({"weight_decay": -0.1}, ["weight_decay must be a number of at least 0, got -0.1"]),
        ({"seed": -1}, ["seed must be a whole number of at least 0, got -1"]),
        ({"class_names": "liver"}, ["class_names must be a list of names, got 'liver'"]),
        ({"fusion_order": "['pixel','patch','whole']"}, ["fusion_order has 'whole'", "image, patch, pixel"]),
        ({"experts": "['whole']", "fusion": "attention"}, ["fusion", "'whole'"]),
        (
            {"train::trainer::max_epoch": 3},
            ["'train::trainer::max_epoch'", "SupervisedTrainer has no argument 'max_epoch'", "'max_epochs'"],
        ),
    ],
)
def test_wrong_setting(bundle: Bundle, phantoms: Path, settings: dict[str, Any], words: list[str]):
    before = files(bundle.root)
    refused(bundle("training", dataset_dir=phantoms, **FAST | settings), *words)
    assert files(bundle.root) == before


def test_setting_without_effect_is_a_warning(trained: Trained, tmp_path: Path):
    finished = trained.bundle(
        "evaluating", dataset_dir=trained.data, output_dir=tmp_path / "out", epochs=3, slices_per_pass=4
    )
    assert finished.code == 0, finished
    assert [line for line in finished.out.splitlines() if "no effect" in line] == [
        "--epochs has no effect in 'evaluating'"
    ]


def test_training_uses_every_setting_of_its_config(trained: Trained):
    assert "no effect" not in trained.finished.out


def test_loss_that_is_no_number(bundle: Bundle, phantoms: Path):
    finished = bundle("training", dataset_dir=phantoms, **FAST | {"learning_rate": 1e30})
    refused(finished, "the loss became nan in step", "(epoch 1)", "lower --learning_rate")
    assert list(files(bundle.root / "models")) == []


def test_nothing_to_resume(bundle: Bundle, phantoms: Path):
    finished = bundle("training", dataset_dir=phantoms, resume=True, **FAST)
    refused(finished, f"'{bundle.root}/eval/last.pt' is not there", "start without resuming")
    assert list(files(bundle.root / "models")) == []


@pytest.mark.parametrize("workflow", ["training", "evaluating", "inference"])
def test_output_folder_is_a_file(trained: Trained, tmp_path: Path, workflow: str):
    out = tmp_path / "out"
    out.write_text("mine")
    settings = FAST if workflow == "training" else {}
    data = trained.data / "imagesVal" if workflow == "inference" else trained.data
    refused(
        trained.bundle(workflow, dataset_dir=data, output_dir=out, **settings), f"output folder '{out}'", "--output_dir"
    )
    assert out.read_text() == "mine"


# ---- wrong scans at inference


def test_inference_of_nothing(trained: Trained, tmp_path: Path):
    (tmp_path / "scans").mkdir()
    for path, words in (("scans", "no scan in"), ("else", "does not exist")):
        finished = trained.bundle("inference", dataset_dir=tmp_path / path, output_dir=tmp_path / "out")
        refused(finished, words, str(tmp_path / path))


def truncated_scan(path: Path) -> str:
    truncate(path)
    return "cannot read"


def nan_scan(path: Path) -> str:
    change(path, lambda x: np.where(x > 100, np.nan, x).astype(np.float32))
    return "NaN or infinite"


def scan_of_four_dimensions(path: Path) -> str:
    change(path, lambda x: np.stack([x, x], -1))
    return "must be one 3-D volume"


def scan_that_is_text(path: Path) -> str:
    with gzip.open(path, "wb") as file:
        file.write(b"no image")
    return "cannot read"


@pytest.mark.parametrize("spoil", [truncated_scan, nan_scan, scan_of_four_dimensions, scan_that_is_text])
def test_inference_keeps_what_was_done_before(trained: Trained, tmp_path: Path, spoil: Callable[[Path], str]):
    scans, out = Path(shutil.copytree(trained.data / "imagesVal", tmp_path / "scans")), tmp_path / "out"
    words = spoil(scans / "phantom_004.nii.gz")
    refused(trained.bundle("inference", dataset_dir=scans, output_dir=out), f"'{scans}/phantom_004.nii.gz'", words)
    assert list(files(out)) == ["phantom_003_seg.nii.gz"]
    assert nib.load(out / "phantom_003_seg.nii.gz").get_fdata().max() > 0
