"""The configs of the bundles as MONAI's tools read them, and the settings of `samora_segmentation`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc import locate
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import ComponentLocator, ConfigParser, ConfigWorkflow
from monai.bundle.properties import InferProperties, TrainProperties
from monai.utils.enums import BundleProperty, BundlePropertyConfig

from samora_monai import __version__
from samora_monai.checkpoints import ModelSettings
from samora_monai.download import CHECKPOINTS
from samora_monai.networks.framing import resize_image
from tests.bundles.command_line import BUNDLES, CONFIGS, FAST, Bundle, CommandLine
from tests.bundles.config_files import config, strings
from tests.bundles.conftest import Trained

WORKFLOWS: dict[str, list[tuple[str, ...]]] = {  # a workflow and its overlay, if any
    "samora_segmentation": [
        ("evaluating",),
        ("evaluating", "multi_gpu_evaluate.yaml"),
        ("inference", "multi_gpu_inference.yaml"),
    ],
    "samora_image_expert": [("teacher",), ("teacher", "multi_gpu_train.yaml")],
    "samora_patch_expert": [("teacher",), ("teacher", "multi_gpu_train.yaml")],
    "samora_pixel_expert": [],
}
ALL_BUNDLES = tuple(WORKFLOWS)
ALL_CONFIGS = [
    (bundle, path.name)
    for bundle in ALL_BUNDLES
    for path in sorted((BUNDLES / bundle / "configs").iterdir())
    if path.suffix in (".yaml", ".json")
]
EVERYWHERE: list[tuple[str, ...]] = [("training",), ("training", "multi_gpu_train.yaml"), ("inference",)]


LOCATOR = ComponentLocator()


def targets(node: Any) -> Iterator[str]:
    """Every `_target_` in a config."""
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from targets(value)
    if isinstance(node, dict) and not node.get("_target_", "@").startswith("@"):  # "@": another item of the config
        yield node["_target_"]


# ---- as MONAI reads them


def test_no_bundle_is_forgotten():
    assert sorted(ALL_BUNDLES) == sorted(path.parents[1].name for path in BUNDLES.glob("*/configs/train.yaml"))


@pytest.mark.parametrize(("bundle", "name"), ALL_CONFIGS)
def test_no_key_is_given_twice(bundle: str, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MONAI_FAIL_ON_DUPLICATE_CONFIG", "1")
    assert config(name, source=BUNDLES / bundle)


@pytest.mark.parametrize(
    ("bundle", "workflow"), [(bundle, workflow) for bundle in WORKFLOWS for workflow in EVERYWHERE + WORKFLOWS[bundle]]
)
def test_required_ids_are_there(bundle: str, workflow: tuple[str, ...]):
    """MONAI's own check instantiates what it finds, and stops at a missing id instead of naming it."""
    verb, *overlay = workflow
    properties = InferProperties if verb == "inference" else TrainProperties
    parser = ConfigParser(config(*CONFIGS[verb], *overlay, source=BUNDLES / bundle))
    required = [p[BundlePropertyConfig.ID] for p in properties.values() if p[BundleProperty.REQUIRED]]
    assert [id for id in required if id not in parser] == []
    assert parser[verb] == "@run" and parser["run"]


@pytest.mark.parametrize(("bundle", "name"), ALL_CONFIGS)
def test_every_name_of_code_is_there(bundle: str, name: str):
    """Classes after `_target_`, and what expressions name in this package: no run has to come that far."""
    for text in strings(config(name, source=BUNDLES / bundle)):
        for path in re.findall(r"samora_monai(?:\.\w+)+", text) if text.startswith("$") else ():
            assert locate(path) is not None, f"{path} in {text}"
    for target in targets(config(name, source=BUNDLES / bundle)):
        module = LOCATOR.get_component_module_name(target)  # of MONAI's classes, which configs call by their bare name
        assert not isinstance(module, list), f"{target} has several meanings: {module}"
        assert callable(locate(f"{module}.{target}" if module else target)), target


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


@pytest.mark.parametrize("bundle", ALL_BUNDLES)
def test_metadata_follows_its_schema(bundle: str, command_line: CommandLine, tmp_path: Path):
    """The schema is MONAI's, kept beside this file so that nothing has to be downloaded."""
    schema = Path(__file__).with_name("meta_schema_20240725.json")
    metadata = BUNDLES / bundle / "configs" / "metadata.json"
    arguments = ("verify_metadata", "--meta_file", metadata, "--filepath", schema)
    finished = command_line(*arguments, cwd=tmp_path)
    assert finished.code == 0, finished
    content = json.loads(metadata.read_text())
    assert content["schema"].endswith(schema.name)
    assert content["version"] in content["changelog"]
    assert content["required_packages_version"]["samora_monai"] == __version__


@pytest.mark.parametrize("bundle", ALL_BUNDLES)
def test_network_is_as_the_metadata_says(bundle: str, command_line: CommandLine, tmp_path: Path):
    """The real vit_b on one slice, without any weights."""
    configs = BUNDLES / bundle / "configs"
    arguments = ("--meta_file", configs / "metadata.json", "--config_file", configs / "inference.json")
    finished = command_line("verify_net_in_out", "network_def", *arguments, "--device", "cpu", cwd=tmp_path)
    assert finished.code == 0, finished


@pytest.mark.parametrize("bundle", ALL_BUNDLES)
def test_only_the_default_base_is_downloaded(bundle: str):
    """With the URL and the hash of the table that the other files come from."""
    (entry,) = yaml.safe_load((BUNDLES / bundle / "large_files.yml").read_text())["large_files"]
    base = CHECKPOINTS[config("train.yaml", source=BUNDLES / bundle)["encoder"]]
    path = f"models/{base.file}"
    assert entry == {"path": path, "url": base.url, "hash_val": base.sha256, "hash_type": "sha256"}
    assert base.size == 375_042_383
    assert config("train.yaml", source=BUNDLES / bundle)["sam_checkpoint"] == f"$@bundle_root + '/{path}'"


@pytest.mark.parametrize(("bundle", "name"), ALL_CONFIGS)
def test_no_absolute_path(bundle: str, name: str):
    for text in strings(config(name, source=BUNDLES / bundle)):
        assert not re.match(r"[/~\\]|[A-Za-z]:[/\\]", text), text
        for before, path in re.findall(r"(.{0,25})'([/~\\][^']*)'", text):
            assert re.search(r"@(bundle_root|output_dir) \+ $", before), f"{path} in {text}"


# ---- settings


def test_defaults_of_a_training_are_those_of_a_model():
    """Without a model file, inference builds the network that a training without any setting would train."""
    train, defaults = config("train.yaml"), ModelSettings().as_dict()
    names = defaults.pop("class_names")
    assert defaults.pop("in_channels") == 1  # no tunable: a slice is grey
    assert defaults == {key: train[key] for key in defaults}
    pred = config("metadata.json")["network_data_format"]["outputs"]["pred"]
    assert names == list(pred["channel_def"].values()) and len(names) == pred["num_channels"]


def test_every_setting_of_a_model_is_handed_over_in_training():
    """A field of `SegmenterConfig` or `ScanScaling` that train.yaml forgets could not be set."""
    model = config("train.yaml")["model"]
    handed = {
        key: value for part in ("network", "scaling", "classes", "postprocessing") for key, value in model[part].items()
    }
    assert handed == {key: f"@{key}" for key in handed}
    assert {*handed} - {"num_classes"} == {*ModelSettings().as_dict()} - {"in_channels"}


def test_training_and_inference_prepare_a_scan_alike(phantoms: Path):
    scan = next((phantoms / "imagesVal").iterdir())
    label = phantoms / "labelsVal" / scan.name
    prepared = []
    for name, id in (("train.yaml", "train::preprocessing"), ("inference.json", "preprocessing")):
        parser = ConfigParser(config(name))
        parser["model"] = ModelSettings().changed(window=[-200, 300])
        item = {"image": str(scan), "label": str(label)} if name == "train.yaml" else {"image": str(scan)}
        prepared.append(parser.get_parsed_content(id)(item)["image"])
    assert torch.equal(*prepared) and torch.equal(prepared[0].affine, prepared[1].affine)


def test_training_validation_and_inference_see_the_same_neighbours(phantoms: Path):
    """MR in slices of the axis of the model, scaled as it says."""
    settings = ModelSettings().changed(
        context=1, image_size=32, modality="MR", intensity="slice_zscore", slice_axis=0, encoder="tiny"
    )
    scan, label = (str(phantoms / folder / "phantom_001.nii.gz") for folder in ("imagesTr", "labelsTr"))
    train, inference = (ConfigParser(config(name)) for name in ("train.yaml", "inference.json"))
    for parser in (train, inference):
        parser["model"] = settings
    train["train#dataset#data"] = [{"image": scan, "label": label}]
    train["train#random_transforms"] = []
    seen: list[torch.Tensor] = []

    def network(slices: torch.Tensor) -> torch.Tensor:
        seen.append(resize_image(slices, (32, 32)))
        return slices

    for parser, id in ((train, "validate#inferer"), (inference, "inferer")):
        image = inference.get_parsed_content("preprocessing")({"image": scan})["image"]
        parser.get_parsed_content(id)(image[None], network)
    trained = torch.stack([item["image"] for item in train.get_parsed_content("train#dataset")])
    assert trained.shape == (48, 3, 32, 32)
    validated, inferred = torch.cat(seen).chunk(2)
    assert torch.equal(validated, inferred)
    torch.testing.assert_close(trained, validated)
    assert inference.get_parsed_content("network_def").in_channels == 3


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
    evaluate = config("train.yaml", "evaluate.yaml")
    assert train["validate"]["inferer"] | {"tta": "@tta"} == evaluate["validate"]["inferer"] == inference["inferer"]
    assert evaluate["checkpoint"] == inference["checkpoint"] and evaluate["tta"] is inference["tta"] is False


def test_contrast_is_changed_freely_in_mr_alone():
    """Hounsfield units mean the same in all CT."""
    train = config("train.yaml")["train"]
    names = {}
    for modality in ("CT", "MR"):
        content = {"model": ModelSettings().changed(modality=modality), "train": train}
        transforms = ConfigParser(content).get_parsed_content("train::random_transforms")
        names[modality] = [type(transform).__name__ for transform in transforms]
    added = ["RandHistogramShiftd", "RandBiasFieldd"]
    assert names["MR"] == [names["CT"][0], *added, *names["CT"][1:]]


@pytest.mark.parametrize(
    ("workflow", "overlay"),
    [
        ("training", "multi_gpu_train.yaml"),
        ("evaluating", "multi_gpu_evaluate.yaml"),
        ("inference", "multi_gpu_inference.yaml"),
    ],
)
def test_overlays_for_processes_copy_nothing(workflow: str, overlay: str):
    """What the start of a run does stays in one file; each other key has its place there or is a sampler."""
    beneath = ConfigParser(config(*CONFIGS[workflow]))
    added = ("::sampler", "::all_processes")
    assert [key for key in config(overlay) if key not in beneath and not key.endswith(added)] == []
    assert not {"initialize", "run", "finalize"} & set(config(overlay))
