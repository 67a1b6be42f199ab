"""The graph of a plan: what runs after what, with which settings, and what it is made from."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from monai.bundle import ConfigParser

from samora_monai.bundles import bundle_path
from samora_monai.errors import MissingFileError
from samora_monai.pipeline.record import settings_hash
from samora_monai.pipeline.run import records_of, unfinished
from samora_monai.pipeline.stages import Stage, stages_of
from tests.pipeline.plans import tiny_plan, write_lists
from tests.tiny import refused


@pytest.fixture
def run(tmp_path: Path, phantoms: Path) -> Path:
    """The folder of a pipeline with a datalist."""
    write_lists(phantoms, tmp_path / "run")
    return tmp_path / "run"


def given(stage: Stage) -> dict[str, str]:
    """The settings on the command line of a stage."""
    words = stage.command()
    return dict(zip(words[5::2], words[6::2], strict=True))


def by_name(stages: list[Stage]) -> dict[str, Stage]:
    return {stage.name: stage for stage in stages}


def test_the_graph_of_the_method(run: Path, base: Path):
    needs = {stage.name: stage.needs for stage in stages_of(tiny_plan(base), run, compare=True)}
    assert needs == {
        "image_teacher": (),
        "patch_teacher": (),
        "image_expert": ("image_teacher",),
        "patch_expert": ("patch_teacher",),
        "pixel_expert": (),
        "fine_tuning": ("image_expert", "patch_expert", "pixel_expert"),
        "evaluation": ("fine_tuning",),
        "samed": (),
        "samed_evaluation": ("samed",),
        "prediction": ("fine_tuning",),
    }
    assert list(by_name(stages_of(tiny_plan(base), run))) == [name for name in needs if "samed" not in name]


def test_every_setting_is_one_of_the_bundle(run: Path, base: Path):
    """A wrong one would stop a pipeline after hours."""
    for stage in stages_of(tiny_plan(base), run, compare=True):
        config = ConfigParser()
        config.read_config([bundle_path(stage.bundle) / "configs" / name for name in stage.configs])
        for name in given(stage):
            parent = name.removeprefix("--").rpartition("::")[0] or name.removeprefix("--")
            assert parent == "config_file" or parent in config, (stage.name, name)


def test_settings_of_the_plan_reach_each_stage(run: Path, base: Path):
    settings = {name: given(stage) for name, stage in by_name(stages_of(tiny_plan(base), run, compare=True)).items()}
    assert settings["image_teacher"]["--image_size"] == "64" and "--encoder" not in settings["image_teacher"]
    expert = settings["patch_expert"]
    assert expert["--teacher_checkpoint"] == f"{run}/bundles/patch_teacher/models/teacher.pt"
    assert (expert["--epochs"], expert["--train::trainer::epoch_length"]) == ("2", "2")
    assert (expert["--lr_scheduler::max_iterations"], expert["--val_interval"]) == ("4", "1")
    tuning = settings["fine_tuning"]
    assert tuning["--experts"] == "['image', 'patch', 'pixel']" and tuning["--fusion"] == "attention"
    assert tuning["--pixel_expert"] == f"{run}/bundles/pixel_expert/models/expert.pt"
    assert tuning["--class_names"].startswith("['background', 'spleen'") and "--class_names" not in expert
    assert not {"--experts", "--fusion", "--image_expert"} & settings["samed"].keys()
    own = {"--bundle_root", "--config_file", "--experts", "--fusion"}
    common = settings["samed"].keys() & tuning.keys() - own
    assert {name: settings["samed"][name] for name in common} == {name: tuning[name] for name in common}
    assert settings["prediction"]["--output_dir"] == f"{run}/predictions"
    assert {stage["--dataset_dir"] for name, stage in settings.items() if name != "prediction"} == {f"{run}/data"}


def test_views_are_averaged_in_evaluation_and_prediction_alike(run: Path, base: Path):
    """As the plan says; the training validates without them."""
    plan, last = tiny_plan(base), {"evaluation", "samed_evaluation", "prediction"}
    averaged = replace(plan, stages={**plan.stages, "inference": {"slices_per_pass": 8, "tta": True}})
    for chosen, expected in ((plan, set()), (averaged, last)):
        stages = stages_of(chosen, run, compare=True)
        assert {stage.name for stage in stages if given(stage).get("--tta") == "True"} == expected
        assert not {stage.name for stage in stages if "--tta" in given(stage)} - expected
    before, after = hashes(run, plan), hashes(run, averaged)
    assert {name for name in before if before[name] != after[name]} == last


def test_resuming_adds_one_setting(run: Path, base: Path):
    stage = stages_of(tiny_plan(base), run)[0]
    assert stage.command(resume=True) == [*stage.command(), "--resume", "True"]


def hashes(run: Path, plan: Any) -> dict[str, str]:
    records = records_of(stages_of(plan, run, compare=True), run)
    return {name: settings_hash(record.made_from) for name, record in records.items()}


def test_what_a_stage_is_made_from(run: Path, base: Path, tmp_path: Path, phantoms: Path):
    plan = tiny_plan(base)
    before = hashes(run, plan)

    def changed(other: Any) -> set[str]:
        after = hashes(run, other)
        return {name for name in before if before[name] != after[name]}

    machine = {"device": "cuda", "num_workers": 3, "jobs": 1, "threads": 2, "hours": 3, "amp": True}
    assert changed(replace(plan, run={**plan.run, **machine})) == set()
    tuned = {"fine_tuning", "evaluation", "prediction"}
    compared = {"samed", "samed_evaluation"}
    teacher = {**plan.stages, "image_teacher": {**plan.stages["image_teacher"], "learning_rate": 0.5}}
    assert changed(replace(plan, stages=teacher)) == {"image_teacher", "image_expert", *tuned}
    assert changed(tiny_plan(base, decoder="hierarchical")) == tuned | compared
    assert changed(replace(plan, run={**plan.run, "seed": 1})) == before.keys()

    copy = shutil.copy(base, tmp_path / "copy.pt")  # the content counts, not the name
    assert changed(tiny_plan(Path(copy))) == set()
    (tmp_path / "copy.pt").write_bytes(b"another base")
    assert changed(tiny_plan(Path(copy))) == before.keys() - {"image_teacher", "patch_teacher"}


def test_scans_are_part_of_what_reads_them(tmp_path: Path, base: Path, phantoms: Path):
    scans, run = Path(shutil.copytree(phantoms, tmp_path / "scans")), tmp_path / "run"
    write_lists(scans, run)
    before = hashes(run, tiny_plan(base))
    unlabeled = next((scans / "imagesUnlabeled").iterdir())
    unlabeled.write_bytes(unlabeled.read_bytes()[:-1])
    after = hashes(run, tiny_plan(base))
    assert {name for name in before if before[name] == after[name]} == {"samed", "samed_evaluation"}
    unlabeled.unlink()
    with refused("does not exist", error=MissingFileError):
        stages_of(tiny_plan(base), run)


def test_a_fine_tuning_that_learns_from_unlabelled_scans_is_made_from_them(run: Path, base: Path):
    images = {case["image"] for case in json.loads((run / "data" / "dataset.json").read_text())["unlabeled"]}
    for choice in (True, False):
        stages = by_name(stages_of(tiny_plan(base, unlabeled=choice), run, compare=True))
        for name in ("fine_tuning", "samed"):
            assert given(stages[name])["--unlabeled"] == str(choice)
            assert images and (images & set(stages[name].scans)) == (images if choice else set())


def test_without_validation_scans_the_training_scans_are_scored(tmp_path: Path, base: Path, phantoms: Path):
    write_lists(phantoms, tmp_path, validation=False)
    stages = by_name(stages_of(tiny_plan(base), tmp_path))
    for name in ("fine_tuning", "evaluation"):
        assert given(stages[name])["--validate::dataset::data"] == "$@data_set.cases.training"
        assert "figures are of the training scans" in stages[name].note
    assert len(stages["evaluation"].scans) == 2


def test_pictures_are_not_segmented(run: Path, base: Path, tmp_path: Path):
    file = run / "data" / "dataset.json"
    header = json.loads(file.read_text())
    (tmp_path / "picture.png").write_bytes(b"picture")
    volumes = [case["image"] for case in header["unlabeled"]]
    header["unlabeled"].append({"image": str(tmp_path / "picture.png")})
    file.write_text(json.dumps(header))
    stages = by_name(stages_of(tiny_plan(base), run))
    assert list(stages["prediction"].scans) == volumes and len(stages["image_teacher"].scans) == 2 + 1 + 3
    header["unlabeled"] = header["unlabeled"][-1:]
    file.write_text(json.dumps(header))
    assert "prediction" not in by_name(stages_of(tiny_plan(base), run))


def test_a_label_that_was_deleted_is_made_again(run: Path, base: Path):
    stages = stages_of(tiny_plan(base), run)
    prediction = stages[-1]
    assert [Path(file).parent for file in prediction.results] == [run / "predictions"] * 2
    assert [file.name.replace("_seg", "") for file in prediction.results] == [Path(s).name for s in prediction.scans]
    records = records_of(stages, run)
    for stage in stages:
        for file in stage.results:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        records[stage.name].finish()
    assert unfinished(stages, records) == []
    prediction.results[1].unlink()
    assert unfinished(stages, records) == [prediction]


def test_scans_without_a_label_alone_are_refused(run: Path, base: Path):
    file = run / "data" / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "training": []}))
    with refused("no labelled scan for training", "samora select"):
        stages_of(tiny_plan(base), run)


def test_the_recipe_of_a_bundle_is_one_of_its_settings():
    """The names in plans.py are those of the recipes."""
    known = yaml.safe_load((bundle_path("samora_segmentation") / "configs" / "train.yaml").read_text())
    assert tiny_plan(Path("base.pt")).stages["fine_tuning"].keys() - {"steps"} <= known.keys()
