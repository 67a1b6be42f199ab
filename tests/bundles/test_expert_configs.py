"""What must be equal in the files of the three expert bundles: they are copies, for every bundle is whole by itself."""

from __future__ import annotations

import difflib
import json
from typing import Any

import pytest
import yaml

from tests.bundles.command_line import BUNDLE, EXPERT_BUNDLES
from tests.bundles.test_configs import config

TAUGHT = ("image", "patch")  # levels with a teacher
SCALING = ("modality", "window", "percentiles", "array_key", "array_slice_axis")


def lines(content: Any) -> list[str]:
    """A config without comments and indentation: one line for each value, in its order."""
    return [line.strip() for line in yaml.safe_dump(content, sort_keys=False, width=10**6).splitlines()]


def difference(name: str) -> list[str]:
    """The lines that the image bundle alone has in the file `name` (-), and those of the patch bundle (+)."""
    one, other = (lines(config(name, source=EXPERT_BUNDLES[level])) for level in TAUGHT)
    return [line for line in difflib.ndiff(one, other) if line[0] in "-+"]


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """Every value of a config that is no dict, by its id."""
    if not isinstance(node, dict):
        return {prefix: node}
    return {
        id: leaf for key, value in node.items() for id, leaf in leaves(value, f"{prefix}::{key}".lstrip(":")).items()
    }


def differing(one: dict[str, Any], other: dict[str, Any], moved: tuple[str, ...] = ()) -> list[str]:
    """The ids that two configs have both but with different values; all but the `moved` ones must be in one order."""
    a, b = leaves(one), leaves(other)
    assert [id for id in a if id in b and id not in moved] == [id for id in b if id in a and id not in moved]
    return [id for id in a if id in b and a[id] != b[id]]


# ---- equal in two bundles


def test_training_of_image_and_patch_differs_in_the_teacher():
    assert difference("train.yaml") == [
        "- teacher_network: r50_2x_sk1",
        "+ teacher_network: vit_l",
        "- - image",
        "+ - patch",
        "- _target_: samora_monai.pretraining.SimCLRTeacher",
        "+ _target_: samora_monai.pretraining.MAETeacher",
        "- pooled: true",
        "+ grid: $@teacher_def.grid",
        "- level: image",
        "+ level: patch",
        "- level: image",
        "+ level: patch",
    ]


def test_training_of_pixel_differs_in_what_is_learned():
    """The clean image instead of a teacher's answer."""
    image, pixel = (config("train.yaml", source=EXPERT_BUNDLES[level]) for level in ("image", "pixel"))
    assert differing(image, pixel) == [
        "segmenter::experts",
        "network_def::_target_",
        "loss::_target_",
        "train::random_transforms",
        "train::handlers",
        "validate::handlers",
        "initialize",
    ]
    assert [id for id in image if id not in pixel] == [
        "teacher_network",
        "teacher_checkpoint",
        "normalize_target",
        "teacher_def",
        "teacher_weights",
        "taught_by",
        "prepare_batch",
    ]
    assert [id for id in pixel if id not in image] == ["decoder_features", "noise", "dice_weight", "decoder_file"]

    noise = pixel["train"]["random_transforms"][-2:]
    assert image["train"]["random_transforms"] + noise == pixel["train"]["random_transforms"]
    assert [transform["_target_"] for transform in noise] == ["CopyItemsd", "RandGaussianNoised"]
    for part in ("train", "validate"):
        ours, theirs = image[part]["handlers"], pixel[part]["handlers"]
        expert = next(handler for handler in ours if handler["_target_"].endswith("ExpertCheckpoint"))
        assert (expert.pop("teacher"), expert["level"]) == ("@taught_by", "image")
        expert["level"] = "pixel"
        assert ours == [handler for handler in theirs if not handler["_target_"].endswith("BestCheckpoint")]
    own = ("$@teacher_weights", "$samora_monai.workflow.startup.check_positive(noise=@noise)")
    assert [line for line in image["initialize"] if line not in own] == [
        line for line in pixel["initialize"] if line not in own
    ]


def test_teachers_differ_in_the_method():
    image, patch = (config("teacher.yaml", source=EXPERT_BUNDLES[level]) for level in TAUGHT)
    assert differing(image, patch) == [
        "teacher_network",
        "learning_rate",
        "weight_decay",
        "teacher_def::_target_",
        "network_def::_target_",
        "loss::_target_",
        "train::random_transforms",
        "validate::key_metric::val_loss::output_transform",
        "initialize",
    ]
    assert [line for line in image["initialize"] if "at_least=2" not in line] == patch["initialize"]
    assert [id for id in image if id not in patch] == ["view_size", "temperature"]
    assert [id for id in patch if id not in image] == ["mask_ratio", "norm_pix"]


def test_pictures_differ_in_what_is_drawn():
    image, patch, pixel = (config("inference.json", source=source) for source in EXPERT_BUNDLES.values())
    common = ["_desc_", "trained::teacher_network", "segmenter::experts", "weights::level"]
    drawn = ["preprocessing::transforms", "inferer::_target_", "handlers"]
    assert differing(image, patch) == [*common, *drawn]
    assert differing(image, pixel) == [
        "_desc_",
        "segmenter::experts",
        "network_def::_target_",
        "weights::level",
        "preprocessing::transforms",
        "handlers",
        "initialize",
    ]
    assert [id for id in pixel if id not in image] == ["decoder", "noise", "decoder_weights"]
    loading = image["preprocessing"]["transforms"]
    assert [config["preprocessing"]["transforms"][: len(loading)] for config in (patch, pixel)] == [loading, loading]
    assert pixel["initialize"] == [*image["initialize"], "$@decoder_weights"]


@pytest.mark.parametrize("name", ["configs/logging.conf", "LICENSE", "large_files.yml"])
def test_the_same_file_in_every_bundle(name: str):
    """Byte for byte; the experts are made for the same SAM that is fine-tuned with them."""
    for source in EXPERT_BUNDLES.values():
        assert (source / name).read_bytes() == (BUNDLE / name).read_bytes()


def test_the_same_overlay_in_every_bundle():
    """But for the first line, which names what it lies on."""
    texts = {level: (s / "configs" / "multi_gpu_train.yaml").read_text() for level, s in EXPERT_BUNDLES.items()}
    bodies = {text.partition("\n")[2] for text in texts.values()}
    assert len(bodies) == 1
    assert ["teacher.yaml" in text for text in texts.values()] == [True, True, False]


# ---- equal within a bundle


@pytest.mark.parametrize("level", TAUGHT)
def test_teacher_and_student_see_the_same_scans(level: str):
    """Same data, run and loops; the network, its loss and how long it trains are each one's own."""
    train, teacher = (config(name, source=EXPERT_BUNDLES[level]) for name in ("train.yaml", "teacher.yaml"))
    own = {"epochs", "batch_size", "learning_rate", "warmup", "weight_decay"}
    own |= {"network_def::_target_", "loss::_target_", "train::random_transforms", "last_checkpoint::path"}
    own |= {"validate::dataset::slice_transform", "validate::key_metric::val_loss::output_transform"}
    own |= {"train::handlers", "validate::handlers", "summary::teacher", "initialize"}
    assert set(differing(train, teacher, moved=("teacher_network", "teacher_weights"))) <= own
    assert train["teacher_checkpoint"] == teacher["teacher_file"]
    assert train["last_checkpoint"]["path"] != teacher["last_checkpoint"]["path"]
    ours = [line for line in train["initialize"] if line != "$@base"]
    assert ours == [line for line in teacher["initialize"] if "at_least=2" not in line]
    assert train["train"]["handlers"][:-1] == teacher["train"]["handlers"]  # the last one writes the last expert
    assert train["validate"]["handlers"][1:] == teacher["validate"]["handlers"][1:]  # the first writes the best


@pytest.mark.parametrize("level", EXPERT_BUNDLES)
def test_expert_without_settings_is_taken_for_one_of_the_defaults(level: str):
    train, inference = (config(name, source=EXPERT_BUNDLES[level]) for name in ("train.yaml", "inference.json"))
    defaults = {key: value for key, value in inference["trained"].items() if key not in ("_target_", "checkpoint")}
    assert list(defaults) == list(train["expert_settings"])
    assert defaults == {key: train[key] for key in defaults}
    assert train["expert_settings"] == {key: f"@{key}" for key in defaults}
    assert (inference["expert"], inference["sam_checkpoint"]) == (train["expert_file"], train["sam_checkpoint"])
    assert inference["preprocessing"]["transforms"][:2] == train["train"]["deterministic_transforms"]
    for key in SCALING:
        assert inference[key] == f"$@trained['{key}']"
    for key in ("bundle_root", "dataset_dir", "output_dir", "device", "num_workers"):
        assert inference[key] == train[key], key


@pytest.mark.parametrize("level", EXPERT_BUNDLES)
def test_cached_slices_are_known_by_every_setting_that_changes_them(level: str):
    for name in ("train.yaml", "teacher.yaml")[: 1 + (level in TAUGHT)]:
        content = config(name, source=EXPERT_BUNDLES[level])
        for part in ("train", "validate"):
            assert content[part]["dataset"]["cache_key"] == f"$str([{', '.join(f'@{key}' for key in SCALING)}])"
        used = json.dumps(content["train"]["deterministic_transforms"])
        assert {key for key in content if f'"@{key}"' in used} == set(SCALING)


def test_segmentation_takes_what_the_experts_were_made_with():
    """Preset, size, rank and scaling of the defaults, so that the README's commands need none of them."""
    segmentation = config("train.yaml")
    for source in EXPERT_BUNDLES.values():
        expert = config("train.yaml", source=source)
        for key in ("encoder", "image_size", "rank", "sam_checkpoint", "modality", "window", "percentiles"):
            assert expert[key] == segmentation[key], key
