"""model.json: what is written is read again, files of the first release too; others are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from samora_monai.checkpoints import ModelSettings, read_model_settings, write_model_settings
from samora_monai.data.scaling import ScanScaling
from samora_monai.errors import MissingFileError
from samora_monai.networks import LEVELS, SegmenterConfig
from tests.tiny import TINY, refused

CLASSES = ("background", "spleen", "right kidney", "left kidney", "liver", "aorta")
# the literal file of a network of the first release (format 1)
FORMAT_1 = """{
 "encoder": "tiny",
 "image_size": 64,
 "decoder": "hierarchical",
 "stage": 3,
 "class_balanced_attention": false,
 "experts": [
  "image",
  "patch",
  "pixel"
 ],
 "rank": 4,
 "fusion": "attention",
 "fusion_order": [
  "pixel",
  "patch",
  "image"
 ],
 "fusion_width": null,
 "fusion_start": "zero",
 "decoder_rank": 0,
 "class_names": [
  "background",
  "spleen",
  "right kidney",
  "left kidney",
  "liver",
  "aorta"
 ],
 "modality": "CT",
 "window": [
  -125,
  275
 ],
 "percentiles": [
  0.5,
  99.5
 ]
}
"""
SAMED_1 = {"decoder": "sam", "experts": ["task"], "fusion": None}  # how the file of SAMed differs from that of H-SAMora
SAMORA_1 = {"decoder": "sam"}
# settings of the first release that a file may lack, and what a network without them did
LATER: dict[str, Any] = {
    "stage": 3,
    "class_balanced_attention": False,
    "fusion_order": ("pixel", "patch", "image"),
    "fusion_width": None,
    "fusion_norm": False,
    "fusion_blocks": "all",
    "decoder_rank": 0,
    "context": 0,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The path of a model whose settings are in format 1."""
    (tmp_path / "model.json").write_text(FORMAT_1)
    return tmp_path / "model.pt"


def rewrite(model: Path, **changes: Any) -> None:
    """Change fields of the settings file; ... removes one."""
    path = model.with_suffix(".json")
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))


@pytest.mark.parametrize(
    "settings",
    [
        ModelSettings(),
        ModelSettings(
            SegmenterConfig(
                TINY | {"global_attn_indexes": [1]},
                image_size=64,
                in_channels=3,
                num_classes=2,
                decoder="hierarchical",
                experts=("pixel", "image"),
                rank=2,
                fusion="block",
                fusion_order=("image", "pixel"),
                fusion_width=16,
                fusion_norm=True,
                fusion_blocks=(1,),
                stage=2,
                class_balanced_attention=True,
            ),
            ScanScaling("MR", (0, 100), (1, 99), slice_axis=1),
            ("background", "lésion"),
        ),
    ],
)
def test_round_trip(settings: ModelSettings, tmp_path: Path):
    write_model_settings(tmp_path / "model.pt", settings)
    assert read_model_settings(tmp_path / "model.pt") == settings
    assert json.loads((tmp_path / "model.json").read_text())["format_version"] == 2
    assert [file.name for file in tmp_path.iterdir()] == ["model.json"]


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ({}, {"decoder": "hierarchical", "experts": LEVELS, "fusion": "attention"}),
        (SAMORA_1, {"decoder": "sam", "experts": LEVELS, "fusion": "attention"}),
        (SAMED_1, {"decoder": "sam", "experts": ("task",), "fusion": None}),
    ],
)
def test_a_file_of_the_first_release(differences: dict[str, Any], expected: dict[str, Any], model: Path):
    rewrite(model, **differences)
    settings = read_model_settings(model)
    assert settings.network == SegmenterConfig("tiny", 64, in_channels=1, num_classes=6, rank=4, **LATER, **expected)
    assert settings.scaling == ScanScaling("CT", (-125, 275), (0.5, 99.5), slice_axis=2, intensity="percentiles")
    assert settings.class_names == CLASSES


def test_a_file_of_the_first_release_without_later_settings(model: Path):
    """The defaults are written out here, so that a new default cannot change an old model."""
    whole = read_model_settings(model)
    rewrite(model, **dict.fromkeys((*LATER, "fusion_start"), ...))
    assert read_model_settings(model) == whole
    rewrite(model, experts=["task"], fusion=None)
    network = read_model_settings(model).network
    assert {name: getattr(network, name) for name in LATER} == LATER


def test_changes_of_some_settings(model: Path):
    settings = read_model_settings(model)
    changed = read_model_settings(model, stage=2, window=[0, 80], modality=None)
    assert (changed.network.stage, changed.scaling.window, changed.scaling.modality) == (2, (0, 80), "CT")
    assert changed.changed(stage=3, window=(-125, 275)) == settings
    assert settings.changed(stage=2).network.stage == 2 and settings.network.stage == 3
    assert settings.changed(stage=None) is settings
    with refused("stage is 4", "3 (mean of both stages)"):
        settings.changed(stage=4)
    with refused("unknown setting 'stages'", "expected one of encoder, "):
        settings.changed(stages=2)


def test_neighbouring_slices_are_the_channels_of_the_network(model: Path):
    assert read_model_settings(model).network.in_channels == 1
    settings = read_model_settings(model, context=1, intensity="slice_zscore")
    assert (settings.network.in_channels, settings.scaling.intensity) == (3, "slice_zscore")
    write_model_settings(model, settings)
    assert read_model_settings(model) == settings


def test_no_files_are_the_default_settings(tmp_path: Path):
    assert read_model_settings(tmp_path / "model.pt") == ModelSettings()
    assert read_model_settings(tmp_path / "model.pt", image_size=512).network.image_size == 512
    assert ModelSettings().network.num_classes == len(ModelSettings().class_names) == 9


def test_a_model_without_settings_is_refused(model: Path):
    model.write_bytes(b"")
    model.with_suffix(".json").unlink()
    with refused("no model settings", "model.json'", "copy both", error=MissingFileError):
        read_model_settings(model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dropout": 0.1}, ("unknown setting 'dropout'", "expected one of encoder, image_size")),
        ({"format_version": 3}, ("has format 3, expected 2", "update samora_monai")),
        ({"format_version": "2"}, ("has format '2', expected 2",)),
        ({"format_version": 2}, ("unknown setting 'fusion_start'",)),
        ({"class_names": ...}, ("lacks 'class_names'", "restore it or train again")),
        ({"class_names": None}, ("class_names is None", "a list of names, background first")),
        ({"class_names": "liver"}, ("class_names is 'liver'", "a list of names, background first")),
        ({"class_names": ["background"]}, ("num_classes is 1", "at least 2")),
        ({"encoder": "vit_g"}, ("unknown encoder 'vit_g'",)),
        ({"encoder": None}, ("unknown encoder None",)),
        ({"rank": 2.5}, ("rank is 2.5",)),
        ({"modality": "PET"}, ("'PET'",)),
        ({"window": None}, ("window must be two increasing numbers",)),
        ({"slice_axis": 3}, ("slice_axis must be 0",)),
        ({"context": 2}, ("context is 2", "0 or 1 neighbouring slice")),
        ({"intensity": "z"}, ("intensity must be one of percentiles, ",)),
    ],
)
def test_files_with_other_contents_are_refused(changes: dict[str, Any], words: tuple[str, ...], model: Path):
    rewrite(model, **changes)
    with refused(f"settings file '{model.with_suffix('.json')}'", *words):
        read_model_settings(model)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", FORMAT_1.encode()[:100]])
def test_damaged_files_are_refused(content: bytes, model: Path):
    model.with_suffix(".json").write_bytes(content)
    with refused(f"settings file '{model.with_suffix('.json')}' is damaged", "restore it or train again"):
        read_model_settings(model)
