"""Wrong files of weights end in one line that names them and says what to do, and leave nothing behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from samora_monai.networks import build_segmenter
from tests.bundles.command_line import FAST, Bundle, files, refused
from tests.bundles.conftest import Trained
from tests.bundles.weights import write_expert, write_sam
from tests.tiny import TINY, flip_bit, truncate

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


def sam2_in_half(folder: Path) -> list[str]:
    truncate(write_sam(folder / "sam.pth", encoder="sam2_mini"))
    return ["sam.pth' is damaged or no PyTorch file; get it again"]


def sam2_for_sam(folder: Path) -> list[str]:
    write_sam(folder / "sam.pth", encoder="sam2_mini")
    return ["'sam.pth' does not fit", "the network is tiny, the file is of sam2_mini; give Meta's file of the same"]


@pytest.mark.parametrize(
    "spoil",
    [
        missing_sam,
        sam_of_another_encoder,
        sam_that_is_none,
        sam_with_a_flipped_bit,
        sam_with_code,
        sam2_in_half,
        sam2_for_sam,
    ],
)
def test_wrong_sam(bundle: Bundle, phantoms: Path, tmp_path: Path, spoil: Callable[[Path], list[str]]):
    words = spoil(tmp_path)
    before = files(bundle.root)
    settings = FAST | {"sam_checkpoint": tmp_path / "sam.pth"}
    refused(bundle("training", dataset_dir=phantoms, **settings), *words)
    assert files(bundle.root) == before
    assert not (tmp_path / "touched").exists()


def sam_for_sam2(sam: Path) -> dict[str, Any]:
    return {"words": ["'sam.pth' does not fit", "the network is sam2_mini, the file is of tiny; give Meta's file"]}


def sam2_that_is_missing(sam: Path) -> dict[str, Any]:
    words = ["no SAM checkpoint", "download sam2.1_hiera_tiny.pt with 'python -m samora_monai.download sam2_tiny'"]
    return {"encoder": "sam2_tiny", "sam_checkpoint": sam.with_name("no.pt"), "words": words}


def a_side_that_16_divides(sam: Path) -> dict[str, Any]:
    return {"image_size": 240, "words": ["image_size is 240 but must be a multiple of 32, e.g. 224"]}


def experts_of_sam_in_sam2(sam: Path) -> dict[str, Any]:
    expert = write_expert(sam.with_name("patch.pt"), sam, "patch")
    sam2 = write_sam(sam.with_name("sam2.pt"), encoder="sam2_mini")
    words = ["'patch.pt' was made for preset tiny but the network has sam2_mini; build it with encoder tiny"]
    return {
        "sam_checkpoint": sam2,
        "experts": "['patch']",
        "fusion": "attention",
        "patch_expert": expert,
        "words": words,
    }


@pytest.mark.parametrize(
    "mistake", [sam_for_sam2, sam2_that_is_missing, a_side_that_16_divides, experts_of_sam_in_sam2]
)
def test_mistakes_with_sam2(bundle: Bundle, phantoms: Path, tmp_path: Path, mistake: Callable[[Path], dict[str, Any]]):
    sam = write_sam(tmp_path / "sam.pth")
    settings = FAST | {"encoder": "sam2_mini", "trainable": "adapters", "sam_checkpoint": sam} | mistake(sam)
    words, before = settings.pop("words"), files(bundle.root)
    refused(bundle("training", dataset_dir=phantoms, **settings), *words)
    assert files(bundle.root) == before


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
