"""The bundle's files as MONAI's tools read them, and what must be equal in two of them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.properties import InferProperties, TrainProperties
from monai.utils.enums import BundleProperty, BundlePropertyConfig

from samora_monai import __version__
from samora_monai.networks import PRESETS
from tests.bundles.command_line import BUNDLE, CONFIGS, FAST, Bundle, CommandLine
from tests.bundles.conftest import Trained

ALL_CONFIGS = sorted(path.name for path in (BUNDLE / "configs").iterdir() if path.suffix in (".yaml", ".json"))
WORKFLOWS = {
    "train": (TrainProperties, CONFIGS["training"]),
    "evaluate": (TrainProperties, CONFIGS["evaluating"]),
    "multi_gpu_train": (TrainProperties, (*CONFIGS["training"], "multi_gpu_train.yaml")),
    "multi_gpu_evaluate": (TrainProperties, (*CONFIGS["evaluating"], "multi_gpu_evaluate.yaml")),
    "inference": (InferProperties, CONFIGS["inference"]),
}


def config(*names: str) -> dict[str, Any]:
    """One config file as it is written, or several laid over each other."""
    paths = [str(BUNDLE / "configs" / name) for name in names]
    return ConfigParser.load_config_files(paths) if len(paths) > 1 else ConfigParser.load_config_file(paths[0])


def strings(node: Any) -> Iterator[str]:
    """Every string in a config."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from strings([key, value])
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)


# ---- as MONAI reads them


@pytest.mark.parametrize("name", ALL_CONFIGS)
def test_no_key_is_given_twice(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MONAI_FAIL_ON_DUPLICATE_CONFIG", "1")
    assert config(name)


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_required_ids_are_there(workflow: str):
    """MONAI's own check instantiates what it finds, and stops at a missing id instead of naming it."""
    properties, names = WORKFLOWS[workflow]
    parser = ConfigParser(config(*names))
    required = [p[BundlePropertyConfig.ID] for p in properties.values() if p[BundleProperty.REQUIRED]]
    assert [id for id in required if id not in parser] == []
    verb = {"train": "training", "evaluate": "evaluating"}.get(workflow.removeprefix("multi_gpu_"), workflow)
    assert parser[verb] == "@run" and parser["run"]


def test_training_has_monais_properties(bundle: Bundle, phantoms: Path, in_process: Callable[..., ConfigWorkflow]):
    workflow = in_process(bundle, "training", dataset_dir=str(phantoms), **FAST)
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.finalize()
    assert workflow.max_epochs == FAST["epochs"] and len(workflow.train_dataset_data) == 2  # MONAI's names for them


@pytest.mark.parametrize("verb", ["evaluating", "inference"])
def test_others_have_monais_properties(
    trained: Trained, verb: str, tmp_path: Path, in_process: Callable[..., ConfigWorkflow]
):
    scans = trained.data if verb == "evaluating" else trained.data / "imagesVal"
    workflow = in_process(trained.bundle, verb, dataset_dir=str(scans), output_dir=str(tmp_path))
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    assert os.listdir(tmp_path)


def test_metadata_follows_its_schema(command_line: CommandLine, tmp_path: Path):
    """The schema is MONAI's, kept beside this file so that nothing has to be downloaded."""
    schema = Path(__file__).with_name("meta_schema_20240725.json")
    metadata = BUNDLE / "configs" / "metadata.json"
    arguments = ("verify_metadata", "--meta_file", metadata, "--filepath", schema)
    finished = command_line(*arguments, cwd=tmp_path)
    assert finished.code == 0, finished
    content = json.loads(metadata.read_text())
    assert content["schema"].endswith(schema.name)
    assert content["version"] in content["changelog"]
    assert content["required_packages_version"]["samora_monai"] == __version__


def test_network_is_as_the_metadata_says(command_line: CommandLine, tmp_path: Path):
    """The real vit_b on one slice, without any weights."""
    arguments = (
        "--meta_file",
        BUNDLE / "configs" / "metadata.json",
        "--config_file",
        BUNDLE / "configs" / "inference.json",
    )
    finished = command_line("verify_net_in_out", "network_def", *arguments, "--device", "cpu", cwd=tmp_path)
    assert finished.code == 0, finished


def test_weights_to_download_are_hashed():
    content = yaml.safe_load((BUNDLE / "large_files.yml").read_text())
    presets = [name for name in PRESETS if name != "tiny"]
    assert len(content["large_files"]) == len(presets)
    for entry, preset in zip(content["large_files"], presets, strict=True):
        assert set(entry) == {"path", "url", "hash_val", "hash_type"}
        assert entry["path"].startswith(f"models/sam_{preset}_")
        assert entry["url"] == f"https://dl.fbaipublicfiles.com/segment_anything/{Path(entry['path']).name}"
        assert entry["hash_type"] == "sha256" and re.fullmatch("[0-9a-f]{64}", entry["hash_val"])
    assert config("train.yaml")["sam_checkpoint"] == f"$@bundle_root + '/{content['large_files'][0]['path']}'"


@pytest.mark.parametrize("name", ALL_CONFIGS)
def test_no_absolute_path(name: str):
    for text in strings(config(name)):
        assert not re.match(r"[/~\\]|[A-Za-z]:[/\\]", text), text
        for before, path in re.findall(r"(.{0,25})'([/~\\][^']*)'", text):
            assert re.search(r"@(bundle_root|output_dir) \+ $", before), f"{path} in {text}"


# ---- equal in two files


def test_default_model_is_the_same_in_training_and_inference():
    """A model without a settings file is taken for one that was trained with the defaults."""
    train, inference = config("train.yaml"), config("inference.json")
    defaults = {key: value for key, value in inference["trained"].items() if key not in ("_target_", "checkpoint")}
    assert list(defaults) == list(train["model_settings"])
    names = defaults.pop("class_names")
    assert defaults == {key: train[key] for key in defaults}
    pred = config("metadata.json")["network_data_format"]["outputs"]["pred"]
    assert names == list(pred["channel_def"].values()) and len(names) == pred["num_channels"]


def test_network_is_the_same_in_training_and_inference():
    train, inference = config("train.yaml")["network_def"], config("inference.json")["network_def"]
    assert train.pop("train") == "@trainable"
    assert list(train) == list(inference)
    assert train.pop("num_classes") == "$len(@classes)" and inference.pop("num_classes") == "$len(@class_names)"
    assert train.pop("_target_") == inference.pop("_target_")
    assert [re.findall(r"@(\w+)", value) for value in train.values()] == [[key] for key in train]
    assert inference == {key: f"$@trained['{key}']" for key in inference}


def test_preprocessing_is_the_same_in_training_and_inference():
    train = config("train.yaml")["train"]["deterministic_transforms"]
    inference = config("inference.json")["preprocessing"]["transforms"]
    for transform in train:  # inference has no label
        transform["keys"] = "image"
        transform.pop("num_classes", None)
    assert train == inference


def test_common_settings_are_the_same_in_training_and_inference():
    train, inference = config("train.yaml"), config("inference.json")
    for id in (
        "bundle_root",
        "dataset_dir",
        "output_dir",
        "device",
        "amp",
        "slices_per_pass",
        "num_workers",
        "imports",
    ):
        assert train[id] == inference[id], id
    assert train["validate"]["inferer"] == inference["inferer"]
    assert config("train.yaml", "evaluate.yaml")["checkpoint"] == inference["checkpoint"]


def test_evaluation_takes_every_setting_from_the_model():
    evaluate = config("evaluate.yaml")
    for key in config("train.yaml")["model_settings"]:
        assert evaluate["classes" if key == "class_names" else key] == f"$@trained['{key}']"


def test_overlays_start_as_what_they_lie_on():
    """An overlay replaces `initialize` as a whole; only these lines may be more or fewer in it."""
    train, evaluate = config("train.yaml")["initialize"], config("evaluate.yaml")["initialize"]
    several = {"$import os", "$samora_monai.engine.distributed.init_process_group()"}
    for single, overlay in ((train, "multi_gpu_train.yaml"), (evaluate, "multi_gpu_evaluate.yaml")):
        added = [line for line in config(overlay)["initialize"] if line not in single]
        assert {line for line in added if "set_determinism" not in line} == several
        assert [line for line in single if line not in config(overlay)["initialize"]] == []
