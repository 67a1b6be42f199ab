"""The configs of the expert bundles: use of every setting, and defaults that must agree."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from samora_monai.checkpoints import ExpertSettings
from samora_monai.data import ScanScaling
from samora_monai.networks import LEVELS
from tests.bundles.command_line import BUNDLE, CONFIGS, EXPERT_BUNDLES
from tests.bundles.config_files import config, strings
from tests.bundles.weights import write_expert, write_sam

TAUGHT = ("image", "patch")  # levels with a teacher
RUNS = [("training", level) for level in LEVELS] + [("teacher", level) for level in TAUGHT]
CHANGES = {  # settings that change a slice
    "modality": "MR",
    "window": [-100, 275],
    "percentiles": [1, 99],
    "slice_axis": 0,
    "array_key": "volume",
    "array_slice_axis": 0,
}


def parser(run: str, level: str, **settings: Any) -> ConfigParser:
    return ConfigParser(config(*CONFIGS[run], source=EXPERT_BUNDLES[level]) | settings)


def reached(content: ConfigParser) -> set[str]:
    """Every id that a run resolves."""
    found, todo = set(), ["initialize", "run", "finalize"]
    while todo:
        for text in strings(content[todo.pop()]):
            ids = {id.rstrip(":") for id in re.findall(r"@([\w:]+)", text)} - found
            found |= ids
            todo += ids
    return found


@pytest.mark.parametrize(("run", "level"), RUNS)
def test_every_setting_is_used_by_the_run(run: str, level: str):
    """A teacher run uses the settings of the expert only to refuse them."""
    tunables = list(config("train.yaml", source=EXPERT_BUNDLES[level]))
    tunables = tunables[: tunables.index("imports")]
    content = parser(run, level)
    assert set(tunables) - reached(content) == set()
    refused = {
        key for text in content["initialize"] if "check_not_given" in text for key in re.findall(r"@(\w+)", text)
    }
    unset = {key for key in tunables if content[key] is None} - {"array_slice_axis", "cache_dir"}
    of_experts = {"encoder", "rank", "sam_checkpoint", "teacher_checkpoint", "normalize_target", "anchor"}
    of_experts |= {"standardise_targets"} | ({"dense"} if level == "image" else set())
    assert refused == unset == (of_experts if run == "teacher" else set())


@pytest.mark.parametrize(("run", "level"), RUNS)
def test_the_key_of_cached_slices_holds_every_setting_that_changes_them(run: str, level: str):
    def key(**settings: Any) -> str:
        return parser(run, level, **settings).get_parsed_content("slices").keywords["cache_key"]

    keys = [key(), *(key(**{name: value}) for name, value in CHANGES.items())]
    assert len(set(keys)) == len(keys)
    assert key(epochs=1, seed=0) == keys[0]
    used = [
        ref for text in strings(parser(run, level)["train"]["preprocessing"]) for ref in re.findall(r"@(\w+)", text)
    ]
    assert sorted(used) == ["array_key", "array_slice_axis", "scaling", "scaling"]


def test_teacher_and_student_share_their_cached_slices():
    for level in TAUGHT:
        keys = {
            parser(run, level).get_parsed_content("slices").keywords["cache_key"] for run in ("training", "teacher")
        }
        assert len(keys) == 1


@pytest.mark.parametrize("level", LEVELS)
def test_inference_without_an_expert_builds_the_default_one(level: str, tmp_path: Path):
    trained = parser("training", level).get_parsed_content("expert")
    built = parser("inference", level, bundle_root=str(tmp_path)).get_parsed_content("trained")
    assert built == ExpertSettings(level) == replace(trained, teacher=None)


@pytest.mark.parametrize("level", LEVELS)
def test_inference_takes_every_setting_from_the_expert(level: str, tmp_path: Path):
    settings = {key: value for key, value in CHANGES.items() if key.startswith("array")}
    scaling = ScanScaling("MR", slice_axis=1)
    expert = write_expert(
        tmp_path / "expert.pt", write_sam(tmp_path / "sam.pth"), level, rank=2, scaling=scaling, **settings
    )
    content = parser("inference", level, expert=str(expert))
    load, scale, *_ = content.get_parsed_content("preprocessing").transforms
    assert (load.array_key, load.array_slice_axis, load.slice_axis) == ("volume", 0, 1)
    scaled = scale({"image": torch.linspace(0, 1000, 101).reshape(1, 1, 1, 101)})["image"]
    assert float(scaled[..., 50]) == pytest.approx(0.5)  # by percentiles, as MR
    segmenter = content.get_parsed_content("segmenter")
    assert (segmenter.image_size, segmenter.image_encoder.rank, segmenter.image_encoder.experts) == (64, 2, (level,))


@pytest.mark.parametrize("level", LEVELS)
def test_common_settings_are_the_same_in_training_and_inference(level: str):
    train, inference = (config(name, source=EXPERT_BUNDLES[level]) for name in ("train.yaml", "inference.json"))
    for key in ("bundle_root", "dataset_dir", "output_dir", "sam_checkpoint", "device", "num_workers"):
        assert inference[key] == train[key], key


def test_segmentation_has_the_defaults_of_the_experts():
    """Equal defaults of preset, size, rank and scaling, so that the README's commands need none of them."""
    segmentation = config("train.yaml")
    for source in EXPERT_BUNDLES.values():
        expert = config("train.yaml", source=source)
        for key in (
            "encoder",
            "image_size",
            "rank",
            "sam_checkpoint",
            "modality",
            "window",
            "percentiles",
            "slice_axis",
        ):
            assert expert[key] == segmentation[key], key


@pytest.mark.parametrize("name", ["configs/logging.conf", "LICENSE", "large_files.yml"])
def test_the_same_file_in_every_bundle(name: str):
    """Byte for byte; experts are trained on the SAM checkpoint that is fine-tuned with them."""
    for source in EXPERT_BUNDLES.values():
        assert (source / name).read_bytes() == (BUNDLE / name).read_bytes()
