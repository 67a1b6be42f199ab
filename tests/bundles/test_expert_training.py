"""Training of teachers and experts through the command line of the expert bundles."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from samora_monai.checkpoints import base_sha256, load_sam
from samora_monai.networks import LEVELS, build_segmenter
from samora_monai.pretraining import MAETeacher, SimCLRTeacher, read_teacher
from tests.bundles.command_line import FAST_EXPERT, FAST_TEACHER, Bundle, Finished, wait_until
from tests.bundles.conftest import TrainedExpert

TAUGHT = tuple(FAST_TEACHER)
METHODS = {"image": SimCLRTeacher, "patch": MAETeacher}
Experts = dict[str, TrainedExpert]
Build = Callable[..., ConfigWorkflow]


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and meta of an expert or a teacher file."""
    content = torch.load(path, weights_only=True)
    return content["state_dict"], json.loads(content["meta"])


def held_out_losses(finished: Finished) -> list[float]:
    return [float(loss) for loss in re.findall(r"^validation loss (\S+) ", finished.out, re.MULTILINE)]


def epochs(finished: Finished) -> list[int]:
    return [int(epoch) for epoch in re.findall(r"^epoch (\d)/\d .* loss \d", finished.out, re.MULTILINE)]


def saved_epoch(finished: Finished) -> int:
    """The last epoch that the log reports as saved."""
    return int(re.findall(r"at epoch (\d), saved\)$", finished.out, re.MULTILINE)[-1])


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


# ---- teachers


@pytest.mark.parametrize("level", TAUGHT)
def test_a_teacher_run_writes_a_teacher(experts: Experts, level: str):
    trained = experts[level]
    state, meta = read(trained.teacher)
    expected = METHODS[level]("tiny").state_dict()
    assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in expected.items()}
    found = {key: meta[key] for key in ("kind", "method", "preset", "slices", "started_from", "epoch")}
    assert found == {
        "kind": "teacher",
        "method": {"image": "simclr", "patch": "mae"}[level],
        "preset": "tiny",
        "slices": 16,
        "started_from": "None",
        "epoch": saved_epoch(trained.teaching),
    }
    assert read_teacher(METHODS[level]("tiny"), str(trained.teacher)).copied == list(expected)


@pytest.mark.parametrize("level", TAUGHT)
def test_a_teacher_run_logs_its_summary_and_losses(experts: Experts, level: str):
    finished = experts[level].teaching
    assert finished.complaints == []
    assert epochs(finished) == [1, 2] and len(held_out_losses(finished)) == 2
    for row in (
        r"files       4 NIfTI",
        r"training    2 scans, 16 slices",
        r"held out    2 scans, 20 slices",
        r"teacher     starts from random weights",
        r"parameters  (\S+) M of \1 M train \(100\.0%\)",
    ):
        assert re.search(f"^{row}$", finished.out, re.MULTILINE), row


@pytest.mark.parametrize("level", TAUGHT)
def test_a_teacher_run_continues_a_teacher(
    experts: Experts, expert_bundle: Callable[..., Bundle], phantoms: Path, level: str
):
    """With steps below float32's precision, the second file equals the first except for BatchNorm's statistics."""
    bundle, first = expert_bundle(level), experts[level].teacher
    still = FAST_TEACHER[level] | {"learning_rate": 1e-30, "epochs": 1}
    finished = bundle("teacher", dataset_dir=phantoms, initial_checkpoint=first, **still)
    assert (finished.code, finished.complaints) == (0, [])
    assert f"teacher     starts from {first}" in finished.out and "loaded 'teacher.pt': copied" in finished.out
    (before, _), (after, meta) = read(first), read(bundle.root / "models" / "teacher.pt")
    assert meta["started_from"] == str(first)
    weights = [key for key in before if not re.search("running_|num_batches", key)]
    assert len(weights) > 50 and all(torch.equal(before[key], after[key]) for key in weights)


# ---- experts


@pytest.mark.parametrize("level", LEVELS)
def test_training_writes_an_expert_and_its_settings(experts: Experts, sam: Path, level: str):
    trained = experts[level]
    written = {"expert.pt", "expert_last.pt", "decoder.pt" if level == "pixel" else "teacher.pt"}
    assert set(os.listdir(trained.expert.parent)) == written
    given = ConfigParser.load_config_file(trained.bundle.configs("train.yaml")[0]) | FAST_EXPERT[level]
    kept = ["encoder", "image_size", "rank", "modality", "window", "percentiles", "array_key", "array_slice_axis"]
    kept += ["noise", "decoder_features"] if level == "pixel" else []

    net = build_segmenter("tiny", 64, experts=(level,))
    load_sam(net, sam)
    names = re.compile(rf"image_encoder\.(blocks\.\d+)\.attn\.experts\.{level}\.")
    expected = {names.sub(r"\1.", k): v.shape for k, v in net.state_dict().items() if names.match(k)}
    for file in ("expert.pt", "expert_last.pt"):
        state, meta = read(trained.expert.with_name(file))
        assert {key: value.shape for key, value in state.items()} == expected
        assert all(value.abs().max() > 0 for key, value in state.items() if "linear_b" in key)  # 0 at first
        assert meta["base_sha256"] == meta["base_sha256_before"] == base_sha256(net)
        assert {key: meta[key] for key in kept} == {key: given[key] for key in kept}
        found = {key: meta[key] for key in ("kind", "level", "rank", "preset", "image_size", "teacher")}
        teacher = None if level == "pixel" else f"tiny from {trained.teacher}"
        assert found == {
            "kind": "expert",
            "level": level,
            "rank": 4,
            "preset": "tiny",
            "image_size": 64,
            "teacher": teacher,
        }


@pytest.mark.parametrize("level", LEVELS)
def test_training_logs_its_summary_and_losses(experts: Experts, level: str):
    finished = experts[level].finished
    assert finished.complaints == []
    assert epochs(finished) == [1, 2]
    first, second = held_out_losses(finished)
    assert second < first
    assert (saved_epoch(finished), f"(best {second} at epoch 2, saved)" in finished.out) == (2, True)
    for row in (
        r"files       4 NIfTI",
        r"training    2 scans, 16 slices",
        r"held out    2 scans, 20 slices",
        rf"network     ViT 128 wide, 6 deep, input 64; experts {level}; .*",
        r"parameters  \S+( M)? of 5\.\d M train \([01]\.\d%\)",
    ):
        assert re.search(f"^{row}$", finished.out, re.MULTILINE), row
    assert (f"teacher     tiny from {experts[level].teacher}" in finished.out) == (level != "pixel")


@pytest.mark.parametrize("level", LEVELS)
def test_only_the_expert_and_its_head_train(experts: Experts, level: str):
    """The state of the run holds neither the base nor the teacher, and the optimiser no other tensor."""
    saved = torch.load(experts[level].bundle.root / "eval" / "last.pt", weights_only=True)
    state, _ = read(experts[level].expert.with_name("expert_last.pt"))
    names = re.compile(rf"(?:features\.)?segmenter\.image_encoder\.(.*)\.attn\.experts\.{level}\.(.*)")
    own = {names.sub(r"\1.\2", key): value for key, value in saved["model"]["state_dict"].items() if names.match(key)}
    assert equal(own, state)
    rest = [key for key in saved["model"]["state_dict"] if not names.match(key)]
    parameters = [key for key in rest if not re.search("pixel_|gaussian_matrix", key)]  # buffers of SAM
    head = r"decoder\..*" if level == "pixel" else r"head\.(weight|bias)"
    assert parameters and all(re.fullmatch(head, key) for key in parameters), parameters
    (group,) = saved["optimizer"]["param_groups"]
    assert len(group["params"]) == len(own) + len(parameters)


@pytest.fixture
def retrain(experts: Experts, phantoms: Path, sam: Path) -> Callable[..., dict[str, Any]]:
    """`retrain(level, KEY=VALUE, ...)`: the settings that `experts` were trained with, their teacher included."""

    def settings(level: str, **more: Any) -> dict[str, Any]:
        teacher = {"teacher_checkpoint": str(experts[level].teacher)} if level in TAUGHT else {}
        return FAST_EXPERT[level] | {"dataset_dir": str(phantoms), "sam_checkpoint": str(sam)} | teacher | more

    return settings


@pytest.mark.parametrize("level", ["image", pytest.param("patch", marks=pytest.mark.slow), "pixel"])
def test_the_seed_determines_the_file(
    experts: Experts, expert_bundle: Callable[..., Bundle], retrain: Callable[..., dict[str, Any]], level: str
):
    """To the byte, in another process and folder; another seed gives another expert."""
    bundle = expert_bundle(level)
    expert = bundle.root / "models" / "expert.pt"
    assert bundle("training", **retrain(level)).code == 0
    assert expert.read_bytes() == experts[level].expert.read_bytes()
    assert bundle("training", **retrain(level, seed=7, epochs=1)).code == 0
    assert not equal(read(experts[level].expert)[0], read(expert)[0])


def test_best_and_last_are_two_files(expert_bundle: Callable[..., Bundle], retrain: Callable[..., dict[str, Any]]):
    """If a higher loss counts as better, the first epoch is the best, and its decoder is kept."""
    bundle = expert_bundle("pixel")
    more_is_better = {"validate::evaluator::metric_cmp_fn": "$lambda current, best: current > best"}
    finished = bundle("training", **retrain("pixel") | more_is_better)
    assert finished.code == 0, finished
    first, second = held_out_losses(finished)
    assert second < first and saved_epoch(finished) == 1
    models = bundle.root / "models"
    last = torch.load(bundle.root / "eval" / "last.pt", weights_only=True)["model"]["state_dict"]
    decoder = {key.removeprefix("decoder."): value for key, value in last.items() if key.startswith("decoder.")}
    assert not equal(torch.load(models / "decoder.pt", weights_only=True), decoder)
    assert not equal(read(models / "expert.pt")[0], read(models / "expert_last.pt")[0])


@pytest.mark.parametrize("level", LEVELS)
def test_training_has_monais_properties(
    expert_bundle: Callable[..., Bundle], retrain: Callable[..., dict[str, Any]], in_process: Build, level: str
):
    workflow = in_process(expert_bundle(level), "training", **retrain(level))
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.finalize()
    assert workflow.max_epochs == 2 and len(workflow.train_dataset_data) == 2


@pytest.mark.parametrize("level", TAUGHT)
def test_a_teacher_run_has_monais_properties(
    expert_bundle: Callable[..., Bundle], phantoms: Path, in_process: Build, level: str
):
    workflow = in_process(expert_bundle(level), "teacher", dataset_dir=str(phantoms), **FAST_TEACHER[level])
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.finalize()
    assert workflow.max_epochs == 2 and len(workflow.train_dataset_data) == 2


# ---- killed runs


@pytest.mark.parametrize(
    ("level", "workflow"),
    [
        ("image", "training"),
        pytest.param("patch", "training", marks=pytest.mark.slow),
        pytest.param("pixel", "training", marks=pytest.mark.slow),
        pytest.param("image", "teacher", marks=pytest.mark.slow),
        pytest.param("patch", "teacher", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_continues(
    experts: Experts,
    expert_bundle: Callable[..., Bundle],
    phantoms: Path,
    retrain: Callable[..., dict[str, Any]],
    level: str,
    workflow: str,
):
    bundle = expert_bundle(level)
    last = bundle.root / "eval" / ("last.pt" if workflow == "training" else "last_teacher.pt")
    settings = retrain(level) if workflow == "training" else FAST_TEACHER[level] | {"dataset_dir": phantoms}
    settings["epochs"] = 5
    saved = set()

    def in_the_third_epoch() -> bool:
        if last.exists():
            saved.add(last.stat().st_mtime_ns)
        return len(saved) == 2

    process, wait = bundle.start(workflow, **settings)
    wait_until(in_the_third_epoch, process)
    process.kill()
    assert wait().code == -signal.SIGKILL
    done = torch.load(last, weights_only=True)["trainer"]["iteration"] // 2  # 16 slices in eights
    assert 2 <= done < 5

    finished = bundle(workflow, resume="true", **settings)
    assert (finished.code, finished.complaints) == (0, [])
    assert f"resuming after epoch {done} from {last}" in finished.out
    assert epochs(finished) == list(range(done + 1, 6))
    assert torch.load(last, weights_only=True)["trainer"]["iteration"] == 10
    if workflow == "training":  # the base has not changed
        _, meta = read(bundle.root / "models" / "expert_last.pt")
        assert meta["base_sha256"] == read(experts[level].expert)[1]["base_sha256"]
