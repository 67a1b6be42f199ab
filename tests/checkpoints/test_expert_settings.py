"""What an expert file keeps of its training, and the files of the release before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from samora_monai.checkpoints import ExpertSettings, load_expert, load_sam, read_expert_settings, save_expert
from samora_monai.data import ScanScaling
from samora_monai.networks import Segmenter, build_segmenter
from tests.bundles.weights import write_expert, write_sam
from tests.tiny import refused

TRAINED = ExpertSettings(
    "pixel",
    encoder="tiny",
    image_size=64,
    rank=2,
    scaling=ScanScaling("MR", (-100, 200), (1, 99)),
    array_key="volume",
    array_slice_axis=0,
    noise=0.2,
    decoder_features=4,
)
BESIDE = {  # as the release before wrote `expert.json`
    "encoder": "tiny",
    "image_size": 64,
    "rank": 2,
    "decoder_features": 4,
    "noise": 0.2,
    "modality": "MR",
    "window": [-100, 200],
    "percentiles": [1, 99],
    "array_key": "volume",
    "array_slice_axis": 0,
}


def network(settings: ExpertSettings, sam: Path) -> Segmenter:
    net = build_segmenter(settings.network)
    load_sam(net, sam)
    return net


@pytest.fixture
def sam(tmp_path: Path) -> Path:
    return write_sam(tmp_path / "sam.pth")


@pytest.fixture
def first_release(tmp_path: Path, sam: Path) -> Path:
    """An expert file of format 1: none of the settings that are new in format 2."""
    path = tmp_path / "expert.pt"
    save_expert(network(TRAINED, sam), path, "pixel")
    content = torch.load(path, weights_only=True)
    meta: dict[str, Any] = json.loads(content["meta"]) | {"format_version": 1}
    torch.save(content | {"meta": json.dumps(meta)}, path)
    return path


def test_settings_come_back_as_they_were(tmp_path: Path, sam: Path):
    save_expert(network(TRAINED, sam), tmp_path / "expert.pt", "pixel", settings=TRAINED)
    assert read_expert_settings(tmp_path / "expert.pt", "pixel") == TRAINED


@pytest.mark.parametrize("level", ["image", "patch"])
def test_only_the_pixel_level_keeps_noise_and_decoder(tmp_path: Path, level: str):
    meta = ExpertSettings(level, teacher="tiny from teacher.pt").as_dict()
    assert meta["teacher"] == "tiny from teacher.pt" and not {"noise", "decoder_features"} & meta.keys()


def test_a_file_of_the_first_release_takes_its_settings_from_the_json_beside_it(first_release: Path, sam: Path):
    first_release.with_suffix(".json").write_text(json.dumps(BESIDE))
    settings = read_expert_settings(first_release, "pixel")
    assert settings == TRAINED
    assert len(load_expert(network(settings, sam), first_release, "pixel").copied) == 24


def test_a_file_of_the_first_release_without_json_has_default_scaling(first_release: Path, sam: Path):
    settings = read_expert_settings(first_release, "pixel")
    assert settings == ExpertSettings("pixel", encoder="tiny", image_size=64, rank=2)
    assert len(load_expert(network(settings, sam), first_release, "pixel").copied) == 24


def test_the_json_beside_a_file_of_today_is_not_read(tmp_path: Path, sam: Path):
    expert = write_expert(tmp_path / "expert.pt", sam, "pixel")
    expert.with_suffix(".json").write_text(json.dumps(BESIDE))
    assert read_expert_settings(expert, "pixel").scaling == ScanScaling()


def test_without_a_file_the_settings_are_the_defaults(tmp_path: Path):
    assert read_expert_settings(tmp_path / "expert.pt", "image") == ExpertSettings("image")


@pytest.mark.parametrize("content", ["{", "[1]", "\xff"])
def test_damaged_json_is_refused(first_release: Path, content: str):
    first_release.with_suffix(".json").write_text(content, encoding="latin-1")
    with refused(f"settings file '{first_release.with_suffix('.json')}' is damaged", "restore it or train again"):
        read_expert_settings(first_release, "pixel")


def test_some_settings_may_be_changed(tmp_path: Path, sam: Path):
    expert = write_expert(tmp_path / "expert.pt", sam, "patch", rank=2)
    settings = read_expert_settings(expert, "patch", modality="MR", array_key="volume")
    assert (settings.scaling.modality, settings.array_key, settings.rank) == ("MR", "volume", 2)
    with refused("unknown setting 'colour' of an expert", "array_key"):
        read_expert_settings(expert, "patch", colour="red")


def test_another_level_is_refused(tmp_path: Path, sam: Path):
    write_expert(tmp_path / "expert.pt", sam, "patch")
    with refused("'expert.pt' is of level patch", "expected one of level image"):
        read_expert_settings(tmp_path / "expert.pt", "image")


def test_settings_are_checked():
    with refused("image_size is 100", "multiple of 16"):
        ExpertSettings("image", image_size=100)
