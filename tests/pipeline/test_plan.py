"""The plan and its file: what a person may edit, and one sentence for each mistake."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from samora_monai.pipeline.plan import EXPERTS, TEACHERS, TRAININGS, Plan
from samora_monai.pipeline.planning import read_plan, write_plan
from tests.tiny import refused

STAGE = {"steps": 40, "epochs": 4, "batch_size": 8, "learning_rate": 1e-5, "warmup": 8}
SETTINGS: dict[str, Any] = {
    "data": {
        "modality": "CT",
        "window": [-125, 275],
        "percentiles": [0.5, 99.5],
        "slice_axis": 2,
        "class_names": ["background", "spleen"],
    },
    "network": {"encoder": "sam2_mini", "sam_checkpoint": "base.pt", "image_size": 128},
    "run": {"device": "cpu", "amp": False, "num_workers": 0, "jobs": 2, "threads": 1, "hours": None, "seed": 0},
    "stages": {
        **{name: {**STAGE, "teacher_network": "tiny"} for name in TEACHERS},
        **{name: {**STAGE, "rank": 8} for name in (*EXPERTS, "fine_tuning")},
        "inference": {"slices_per_pass": 8},
    },
}
MISTAKES: list[tuple[str, Any, str]] = [
    ("data.modality", "PET", "data.modality must be 'CT' or 'MR', got 'PET'"),
    ("data.window", [275, -125], "data.window must be two increasing numbers"),
    ("data.intensity", "z", "data.intensity must be one of percentiles, volume_zscore, slice_zscore, got 'z'"),
    ("data.slice_axis", 3, "data.slice_axis must be 0 (sagittal), 1 (coronal) or 2 (axial), got 3"),
    ("data.class_names", "spleen", "data.class_names must be a list of names, background first, got 'spleen'"),
    ("data.class_names", ["background"], "data.class_names must be 2 to 256 different names"),
    ("data.class_names", ["background", "a", "a"], "data.class_names must be 2 to 256 different names"),
    ("data.modalty", "CT", "data.modalty is no setting of a plan; did you mean 'modality'?"),
    ("network.image_size", 100, "network.image_size is 100 but must be a multiple of 32"),
    ("network.encoder", "vit_x", "network: unknown encoder 'vit_x'; choose one of vit_b"),
    ("network.sam_checkpoint", None, "network.sam_checkpoint must be the path of the base's weights, got None"),
    ("run.device", "gpu", "run.device must be cpu, cuda or cuda:N, got 'gpu'"),
    ("run.amp", "maybe", "run.amp must be auto, true or false, got 'maybe'"),
    ("run.jobs", 0, "run.jobs must be a whole number of at least 1, got 0"),
    ("run.hours", -1, "run.hours must be a number above 0, or null, got -1"),
    ("run.seed", -1, "run.seed must be a whole number of at least 0, got -1"),
    ("stages.pixel_expert.steps", 41, "stages.pixel_expert.steps must be a multiple of its epochs (4)"),
    ("stages.pixel_expert.learning_rate", "fast", "stages.pixel_expert.learning_rate must be a number above 0"),
    ("stages.pixel_expert.teacher_network", "tiny", "stages.pixel_expert.teacher_network is no setting of a plan"),
    ("stages.pixel_expert.val_interval", 0, "stages.pixel_expert.val_interval must be a whole number of at least 1"),
    ("stages.image_expert.rank", 4, "stages.image_expert.rank is 4 but that of stages.fine_tuning is 8"),
    ("stages.fine_tuning.decoder", "unet", "network: unknown decoder 'unet'"),
    (
        "stages.fine_tuning.batchsize",
        8,
        "stages.fine_tuning.batchsize is no setting of a plan; did you mean 'batch_size'",
    ),
    ("stages.inference.slices_per_pass", 0, "stages.inference.slices_per_pass must be a whole number of at least 1"),
    ("stages.tuning", {}, "stages.tuning is no setting of a plan; did you mean 'fine_tuning'?"),
]


def changed(key: str, value: Any) -> dict[str, Any]:
    """The settings with one changed."""
    settings = copy.deepcopy(SETTINGS)
    *sections, name = key.split(".")
    node = settings
    for section in sections:
        node = node[section]
    node[name] = value
    return settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    write_plan(Plan(**SETTINGS), path)
    return path


def test_a_plan_is_read_as_it_was_written(file: Path):
    plan = read_plan(file)
    assert plan == Plan(**SETTINGS) and plan.reasons == {}
    assert yaml.safe_load(file.read_text()) == SETTINGS


def test_every_reason_stands_beside_its_value(tmp_path: Path):
    reasons = {
        "data.modality": "stated",
        "data.class_names": "of the labels",
        "stages.fine_tuning.steps": "measured " + 30 * "word ",
    }
    names = ["background", *(f"a long name {i}" for i in range(20))]
    plan = replace(Plan(**changed("data.class_names", names)), reasons=reasons)
    write_plan(plan, tmp_path / "plan.yaml", ["one labelled scan"])
    lines = (tmp_path / "plan.yaml").read_text().splitlines()
    assert "# - one labelled scan" in lines
    assert "  modality: CT                      # stated" in lines
    assert lines[lines.index("  # of the labels") + 1].startswith("  class_names: [background, a long name 0")
    step = next(i for i, line in enumerate(lines) if "measured" in line)
    assert lines[step].startswith("    steps: 40 ") and lines[step + 1].strip().startswith("# word")
    assert max(len(line) for line in lines if "class_names" not in line) <= 120
    assert read_plan(tmp_path / "plan.yaml") == plan


def test_a_person_may_edit_values_and_add_settings_of_a_bundle(file: Path):
    text = (
        file.read_text()
        .replace("learning_rate: 1.0e-05", "learning_rate: 1e-4")
        .replace("modality: CT", "modality: MR")
    )
    file.write_text(text + "  # a remark\n")
    plan = read_plan(file)
    assert plan.data["modality"] == "MR"
    assert {plan.stages[name]["learning_rate"] for name in TRAININGS} == {1e-4}
    more = {**STAGE, "rank": 8, "weight_decay": 0.2, "validate::dataset::data": "$@data_set.cases.training"}
    write_plan(Plan(**changed("stages.fine_tuning", more)), file)
    assert read_plan(file).stages["fine_tuning"] == more


@pytest.mark.parametrize(("key", "value", "message"), MISTAKES, ids=[f"{key}={value}" for key, value, _ in MISTAKES])
def test_a_mistake_is_named_by_its_key(key: str, value: Any, message: str, file: Path):
    file.write_text(yaml.safe_dump(changed(key, value)))
    with refused(f"in plan '{file}', {message}"):
        read_plan(file)


def test_what_is_missing_is_named(file: Path, tmp_path: Path):
    with refused("there is no plan", "samora plan", error=FileNotFoundError):
        read_plan(tmp_path / "other.yaml")
    settings = copy.deepcopy(SETTINGS)
    del settings["run"]["jobs"]
    file.write_text(yaml.safe_dump(settings))
    with refused("run.jobs is missing"):
        read_plan(file)
    file.write_text(yaml.safe_dump({key: value for key, value in SETTINGS.items() if key != "network"}))
    with refused("lacks the section 'network'"):
        read_plan(file)
    file.write_text(yaml.safe_dump(SETTINGS | {"model": {}}))
    with refused("unknown section 'model'"):
        read_plan(file)
    file.write_text("data: [\n")
    with refused("cannot be read", "correct it or delete it"):
        read_plan(file)
    file.write_text(yaml.safe_dump(SETTINGS | {"run": "fast"}))
    with refused("run must hold settings"):
        read_plan(file)
