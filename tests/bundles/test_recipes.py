"""The overlays of the papers' data sets and systems: every combination is one that training accepts."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.utils import optional_import

from samora_monai.networks import LEVELS
from samora_monai.public_data.splits import SPLITS
from samora_monai.workflow.overrides import SEPARATOR
from tests.bundles.command_line import BUNDLE, FAST, Bundle

TRAIN = BUNDLE / "configs" / "train.yaml"
RECIPES = BUNDLE / "configs" / "recipes"
DATA = ("synapse", "synapse_10pct", "la_4", "promise12_3")
SYSTEMS = {"samed": ("sam", ("task",)), "hsam": ("hierarchical", ("task",))}
SYSTEMS |= {"samora": ("sam", LEVELS), "hsamora": ("hierarchical", LEVELS)}
# encoder, input size, epochs, batch size, learning rate, warm-up
PUBLISHED: dict[tuple[str, str], tuple[Any, ...]] = {
    ("synapse", "hsam"): ("vit_l", 224, 300, 16, 0.0026, 250),
    ("synapse_10pct", "hsam"): ("vit_b", 512, 300, 16, 0.0025, 250),
    ("la_4", "hsam"): ("vit_b", 512, 250, 16, 0.0028, 250),
    ("promise12_3", "hsam"): ("vit_b", 512, 250, 16, 0.0026, 250),
}
for _data in DATA:
    PUBLISHED[_data, "samed"] = ("vit_b", 512, 160, 24, 0.005, 250)
    PUBLISHED[_data, "samora"] = ("vit_b", 224, 20, 32, 0.005, 25)
    PUBLISHED[_data, "hsamora"] = ("vit_b", 224, 30, 32, 0.0025, 25)


def parser_of(*files: Path) -> ConfigParser:
    config = ConfigParser.load_config_files([str(file) for file in files])
    return ConfigParser(config, globals={"samora_monai": "samora_monai", "torch": "torch"})


def recipe(name: str) -> Path:
    return RECIPES / f"{name}.yaml"


def test_names():
    """The preparation and the recipe of a data set are called the same."""
    assert {path.stem for path in RECIPES.iterdir()} == {*DATA, *SYSTEMS}
    assert set(DATA) == set(SPLITS)


@pytest.mark.parametrize("name", [*DATA, *SYSTEMS])
def test_every_id_is_known(name: str):
    """It stands in train.yaml, or is an argument of a component there."""
    train = parser_of(TRAIN)
    for key in ConfigParser.load_config_file(str(recipe(name))):
        if key not in train:
            parent, _, argument = key.rpartition(SEPARATOR)
            module, _, target = train[parent]["_target_"].rpartition(".")
            component, found = optional_import(module, name=target)
            assert found and argument in inspect.signature(component).parameters, key


@pytest.mark.parametrize("name", [*DATA, *SYSTEMS])
def test_every_number_has_a_source(name: str):
    lines = recipe(name).read_text().splitlines()
    assert len(lines) <= 24
    assert [line for line in lines if any(c.isdigit() for c in line.partition(": ")[2]) and "#" not in line] == [
        line for line in lines if line.startswith(("sam_checkpoint", "network_def::pixel_std"))
    ]


@pytest.mark.parametrize(("data", "system"), PUBLISHED)
def test_combination(data: str, system: str):
    """The network is built as by a training, but without memory."""
    parser = parser_of(TRAIN, recipe(data), recipe(system))
    parser["cases"] = SimpleNamespace(model_file=None, class_names=SPLITS[data].class_names, source=data)
    with torch.device("meta"):
        net = parser.get_parsed_content("network_def")
    values = {key: parser.get_parsed_content(key) for key in ("encoder", "epochs", "val_interval", "num_classes")}
    assert (net.decoder, tuple(net.image_encoder.experts)) == SYSTEMS[system]
    assert bool(net.image_encoder.fusion) == (len(net.image_encoder.experts) == 3)
    assert net.num_classes == values["num_classes"]
    assert values["val_interval"] == values["epochs"]
    assert parser["modality"] == SPLITS[data].modality
    assert parser.get_parsed_content("sam_checkpoint").startswith(f"./models/sam_{values['encoder']}_")
    found = (values["encoder"], net.image_size, values["epochs"])
    found += tuple(parser[key] for key in ("batch_size", "learning_rate", "warmup"))
    assert found == PUBLISHED[data, system]


@pytest.mark.parametrize(("system", "rank"), [("samed", 4), ("hsam", 5)])
def test_training(bundle: Bundle, phantoms: Path, system: str, rank: int):
    """From the command line, with everything large made small."""
    settings = {"dataset_dir": phantoms, "num_classes": 6, **FAST, "val_interval": 2}
    finished = bundle.start("training", "recipes/synapse.yaml", f"recipes/{system}.yaml", **settings)[1]()
    assert finished.code == 0, finished
    state = torch.load(bundle.model, weights_only=True)
    assert not state["pixel_mean"].any()
    assert ("mask_decoder2.mask_tokens.weight" in state) == (system == "hsam")
    assert len(state["image_encoder.blocks.0.attn.experts.task.linear_a_q.weight"]) == rank
