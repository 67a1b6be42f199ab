"""The overlays of the papers' systems and data sets: every combination is a config that training accepts."""

from __future__ import annotations

import inspect
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import ConfigParser

from samora_monai.data.prepare import SPLITS
from samora_monai.engine.overrides import SEPARATOR
from samora_monai.networks import build_segmenter
from tests.bundles.command_line import BUNDLE

RECIPES = BUNDLE / "configs" / "recipes"
DATA = ("synapse", "synapse_10pct", "la_4", "promise12_3")
SYSTEMS = {  # trainable parameters of vit_b with 9 classes, as the papers' code counts those that get a gradient
    "samed": ("sam", ("task",)),
    "hsam": ("hierarchical", ("task",)),
    "samora": ("sam", ("image", "patch", "pixel")),
    "hsamora": ("hierarchical", ("image", "patch", "pixel")),
}


def overlay(name: str) -> dict[str, Any]:
    return ConfigParser.load_config_file(str(RECIPES / f"{name}.yaml"))


def combined(*names: str) -> ConfigParser:
    files = [str(BUNDLE / "configs" / "train.yaml"), *(str(RECIPES / f"{name}.yaml") for name in names)]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    parser["bundle_root"] = "BUNDLE"
    return parser


def test_each_file_is_used():
    assert {path.stem for path in RECIPES.iterdir()} == {*DATA, *SYSTEMS}
    assert set(DATA) == set(SPLITS)  # the preparation and the recipe of a data set have one name


@pytest.mark.parametrize("name", [*DATA, *SYSTEMS])
def test_each_value_is_known_and_has_a_source(name: str):
    """An id stands in train.yaml, or is an argument of a component there; a number has a trailing comment."""
    train = ConfigParser(ConfigParser.load_config_file(str(BUNDLE / "configs" / "train.yaml")))
    values = overlay(name)
    for key in values:
        if key not in train:
            parent, _, argument = key.rpartition(SEPARATOR)
            target = train[parent]["_target_"]
            assert (
                argument
                in inspect.signature(
                    ConfigParser({"c": f"${target}"}, globals=_imports()).get_parsed_content("c")
                ).parameters
            )
    lines = (RECIPES / f"{name}.yaml").read_text().splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 120
    for line in lines:
        if isinstance(next(iter((yaml.safe_load(line) or {"": ""}).values())), (int, float)):
            assert "  # " in line, line


def _imports() -> dict[str, str]:
    return {"samora_monai": "samora_monai", "torch": "torch"}


@pytest.mark.parametrize(("data", "system"), list(itertools.product(DATA, SYSTEMS)))
def test_the_network_of_each_combination(data: str, system: str):
    """The real one, on the meta device."""
    parser = combined(data, system)
    parser["classes"] = SPLITS[data].class_names
    settings = parser.get_parsed_content("network_def", instantiate=False).get_config()
    settings = parser.get_parsed_content("network_def", eval_expr=True, instantiate=False).get_config()
    decoder, experts = SYSTEMS[system]
    settings = {key: value for key, value in settings.items() if not key.startswith("_")}
    with torch.device("meta"):
        net = build_segmenter(**settings)
    assert (net.decoder, tuple(net.image_encoder.experts)) == (decoder, experts)
    assert parser.get_parsed_content("num_classes") == net.num_classes == len(SPLITS[data].class_names)
    assert parser.get_parsed_content("modality") == SPLITS[data].modality
    assert parser.get_parsed_content("val_interval") == parser.get_parsed_content("epochs")
    assert Path(parser.get_parsed_content("sam_checkpoint")).name.startswith(f"sam_{parser['encoder']}")
    assert (net.image_size, parser["encoder"]) == {
        "samed": (512, "vit_b"),
        "hsam": (224, "vit_l") if data == "synapse" else (512, "vit_b"),
        "samora": (224, "vit_b"),
        "hsamora": (224, "vit_b"),
    }[system]
    assert bool(net.pixel_mean.is_meta)
