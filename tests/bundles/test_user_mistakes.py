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
import torch

from samora_monai.networks import build_segmenter
from tests.bundles.command_line import FAST, Bundle, Finished, files
from tests.bundles.conftest import Trained
from tests.bundles.weights import write_expert, write_sam
from tests.tiny import TINY, flip_bit


def refused(finished: Finished, *words: str) -> None:
    """One line on stderr that holds all `words`, exit code 1, and no other word of an error."""
    assert finished.code == 1, finished
    assert len(finished.complaints) == 1, finished
    (line,) = finished.complaints
    assert line.startswith("error: ") and len(line) < 700
    assert not any(word in finished.out for word in ("ERROR", "Traceback", "terminating")), finished.out
    for word in words:
        assert str(word) in line, f"{word!r} not in: {line}"


# ---- ways to spoil the data: each changes the folder and returns the words that the message must hold


def scan(data: Path, number: int = 1, kind: str = "images") -> Path:
    return data / f"{kind}{'Tr' if number <= 2 else 'Val'}" / f"phantom_{number:03d}.nii.gz"


def change(path: Path, how: Callable[[np.ndarray], np.ndarray]) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(how(np.asanyarray(image.dataobj)), image.affine), path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


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
    ],
)
def test_wrong_setting(bundle: Bundle, phantoms: Path, settings: dict[str, Any], words: list[str]):
    before = files(bundle.root)
    refused(bundle("training", dataset_dir=phantoms, **FAST | settings), *words)
    assert files(bundle.root) == before


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


# ---- wrong weights to start from


class Bomb:
    """Pickled, it makes the folder `touched` when it is loaded."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.touched),)


def missing_sam(folder: Path) -> list[str]:
    return [f"no SAM checkpoint '{folder}/sam.pth'", "download_large_files", "--sam_checkpoint none --trainable all"]


def sam_of_another_encoder(folder: Path) -> list[str]:
    write_sam(folder / "sam.pth", encoder=TINY)
    return ["'sam.pth' does not fit", "image_encoder.", "the network is tiny"]


def sam_that_is_none(folder: Path) -> list[str]:
    (folder / "sam.pth").write_text("<html>404</html>")
    return ["sam.pth' is damaged or no PyTorch file"]


def sam_with_a_flipped_bit(folder: Path) -> list[str]:
    flip_bit(write_sam(folder / "sam.pth"))
    return ["sam.pth' is damaged", "does not match its checksum; get it again"]


def sam_with_code(folder: Path) -> list[str]:
    torch.save({"image_encoder.pos_embed": Bomb(folder / "touched")}, folder / "sam.pth")
    return ["sam.pth' holds code objects", "expected tensors only"]


@pytest.mark.parametrize(
    "spoil", [missing_sam, sam_of_another_encoder, sam_that_is_none, sam_with_a_flipped_bit, sam_with_code]
)
def test_wrong_sam(bundle: Bundle, phantoms: Path, tmp_path: Path, spoil: Callable[[Path], list[str]]):
    words = spoil(tmp_path)
    before = files(bundle.root)
    settings = FAST | {"sam_checkpoint": tmp_path / "sam.pth"}
    refused(bundle("training", dataset_dir=phantoms, **settings), *words)
    assert files(bundle.root) == before
    assert not (tmp_path / "touched").exists()


def expert_missing(sam: Path, expert: Path) -> list[str]:
    return [f"no checkpoint '{expert}'"]


def expert_of_another_rank(sam: Path, expert: Path) -> list[str]:
    write_expert(expert, sam, "patch", rank=8)
    return ["'patch.pt' was made for rank 8 but the network has 4"]


def expert_of_another_preset(sam: Path, expert: Path) -> list[str]:
    write_expert(expert, write_sam(sam.with_name("other.pth"), encoder=TINY), "patch", encoder=TINY)
    return ["'patch.pt' was made for preset ViT 32 wide", "the network has tiny"]


def expert_of_another_base(sam: Path, expert: Path) -> list[str]:
    write_expert(expert, write_sam(sam.with_name("other.pth"), seed=7), "patch")
    return ["'patch.pt'", "base_sha256", "load the SAM checkpoint it was trained on"]


def expert_of_another_level(sam: Path, expert: Path) -> list[str]:
    write_expert(expert, sam, "pixel")
    return ["'patch.pt' is of level pixel; expected one of level patch"]


def expert_that_is_a_model(sam: Path, expert: Path) -> list[str]:
    shutil.copy(sam, expert)
    return ["'patch.pt'", "is no expert file"]


def expert_with_code(sam: Path, expert: Path) -> list[str]:
    torch.save({"state_dict": {}, "meta": Bomb(expert.with_name("touched"))}, expert)
    return ["patch.pt' holds code objects"]


@pytest.mark.parametrize(
    "spoil",
    [
        expert_missing,
        expert_of_another_rank,
        expert_of_another_preset,
        expert_of_another_base,
        expert_of_another_level,
        expert_that_is_a_model,
        expert_with_code,
    ],
)
def test_wrong_expert(bundle: Bundle, phantoms: Path, tmp_path: Path, spoil: Callable[[Path, Path], list[str]]):
    sam = write_sam(tmp_path / "sam.pth")
    words = spoil(sam, tmp_path / "patch.pt")
    before = files(bundle.root)
    settings = FAST | {"sam_checkpoint": sam, "trainable": "adapters", "experts": "['patch']", "fusion": "attention"}
    refused(bundle("training", dataset_dir=phantoms, patch_expert=tmp_path / "patch.pt", **settings), *words)
    assert files(bundle.root) == before
    assert not (tmp_path / "touched").exists()


# ---- wrong models


def no_model(models: Path) -> list[str]:
    for file in models.iterdir():
        file.unlink()
    return [f"'{models}/model.", "train ", " first", "--checkpoint"]


def settings_alone(models: Path) -> list[str]:
    (models / "model.pt").unlink()
    return [f"no model '{models}/model.pt'", "train one first"]


def another_number_of_classes(models: Path) -> list[str]:
    torch.save(build_segmenter("tiny", 64, num_classes=3).state_dict(), models / "model.pt")
    return ["'model.pt' does not fit", "mask_decoder.output_hypernetworks_mlps.3", "6 classes"]


def another_network(models: Path) -> list[str]:
    torch.save(build_segmenter(TINY, 64, num_classes=6).state_dict(), models / "model.pt")
    return ["'model.pt' does not fit", "image_encoder.", "ViT 128 wide"]


def damaged_model(models: Path) -> list[str]:
    truncate(models / "model.pt")
    return [f"'{models}/model.pt' is damaged"]


def model_with_a_flipped_bit(models: Path) -> list[str]:
    flip_bit(models / "model.pt")
    return [f"'{models}/model.pt' is damaged", "does not match its checksum; get it again"]


def model_with_code(models: Path) -> list[str]:
    torch.save(Bomb(models / "touched"), models / "model.pt")
    return [f"'{models}/model.pt' holds code objects"]


def damaged_settings(models: Path) -> list[str]:
    truncate(models / "model.json")
    return [f"'{models}/model.json' is damaged"]


def no_settings(models: Path) -> list[str]:
    (models / "model.json").unlink()
    return [f"no model settings '{models}/model.json'", "copy both"]


def settings_that_lack_one(models: Path) -> list[str]:
    settings = json.loads((models / "model.json").read_text())
    del settings["class_names"]
    (models / "model.json").write_text(json.dumps(settings))
    return [f"'{models}/model.json' lacks 'class_names'"]


def settings_that_are_a_list(models: Path) -> list[str]:
    (models / "model.json").write_text("[]")
    return [f"'{models}/model.json' is damaged (expected an object, got list)"]


@pytest.mark.parametrize(
    "spoil",
    [
        no_model,
        settings_alone,
        no_settings,
        settings_that_lack_one,
        settings_that_are_a_list,
        another_number_of_classes,
        another_network,
        damaged_model,
        model_with_a_flipped_bit,
        model_with_code,
        damaged_settings,
    ],
)
@pytest.mark.parametrize("workflow", ["evaluating", "inference"])
def test_wrong_model(trained: Trained, tmp_path: Path, workflow: str, spoil: Callable[[Path], list[str]]):
    models = Path(shutil.copytree(trained.bundle.root / "models", tmp_path / "models"))
    words = spoil(models)
    data = trained.data / "imagesVal" if workflow == "inference" else trained.data
    finished = trained.bundle(workflow, dataset_dir=data, output_dir=tmp_path / "out", checkpoint=models / "model.pt")
    refused(finished, *words)
    assert files(tmp_path / "out") == {} and not (models / "touched").exists()


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
