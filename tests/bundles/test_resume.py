"""A training that is killed and resumed ends with the weights of an undisturbed one, bit by bit."""

from __future__ import annotations

import csv
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bundles.command_line import FAST, FAST_EXPERT, FAST_TEACHER, Bundle, Finished, wait_until
from tests.nested import assert_equal

EPOCHS = 5


def kill_and_resume(bundle: Bundle, workflow: str, last: Path, **settings: Any) -> Finished:
    """Kill a training in its third epoch, or a later one, and complete it with `--resume true`."""
    saved = set()

    def in_the_third_epoch() -> bool:
        if last.exists():
            saved.add(last.stat().st_mtime_ns)
        return len(saved) == 2

    process, wait = bundle.start(workflow, **settings)
    wait_until(in_the_third_epoch, process)
    process.kill()
    assert wait().code == -signal.SIGKILL
    position = torch.load(last, weights_only=True)["trainer"]
    done = position["iteration"] // position["epoch_length"]
    assert 2 <= done < EPOCHS

    finished = bundle(workflow, resume="true", **settings)
    assert (finished.code, finished.complaints) == (0, [])
    assert f"resuming after epoch {done} from {last}" in finished.out
    assert "will not equal" not in finished.out
    epochs = {int(epoch) for epoch in re.findall(rf"^epoch (\d)/{EPOCHS}", finished.out, re.MULTILINE)}
    assert epochs == set(range(done + 1, EPOCHS + 1))
    return finished


def assert_same_files(resumed: Bundle, undisturbed: Bundle, files: list[str]) -> None:
    for file in files:
        assert_equal(*(torch.load(bundle.root / file, weights_only=True) for bundle in (resumed, undisturbed)), file)


@pytest.mark.parametrize(
    ("encoder", "num_workers", "more"),
    [
        ("tiny", 0, {}),
        pytest.param("tiny", 2, {}, marks=pytest.mark.slow),
        pytest.param("sam2_mini", 0, {"weight_decay_on": "matrices", "expert_rate": 0.5}, marks=pytest.mark.slow),
    ],
)
def test_killed_training_equals_an_undisturbed_one(
    bundle: Bundle, phantoms: Path, tmp_path: Path, encoder: str, num_workers: int, more: dict[str, Any]
):
    last = bundle.root / "eval" / "last.pt"
    settings = FAST | more | {"encoder": encoder, "num_workers": num_workers, "dataset_dir": phantoms}
    settings |= {"epochs": EPOCHS, "learning_rate": 1e-3}
    finished = kill_and_resume(bundle, "training", last, **settings)
    assert torch.load(last, weights_only=True)["trainer"]["iteration"] == 20  # 16 slices in fours

    undisturbed = Bundle(tmp_path / "undisturbed", bundle.command_line)
    assert undisturbed("training", **settings).code == 0
    assert_same_files(bundle, undisturbed, ["models/model.pt", "eval/last.pt"])

    # the model on disk is the one that was best before or after the kill
    evaluation = bundle("evaluating", dataset_dir=phantoms, output_dir=tmp_path / "out")
    assert (evaluation.code, evaluation.complaints) == (0, [])
    with open(tmp_path / "out" / "summary.csv", newline="") as file:
        mean = {row["name"]: float(row["dice"]) for row in csv.DictReader(file)}["mean"]
    best = re.findall(r"\(best (\S+) at epoch \d", finished.out)[-1]
    assert mean == pytest.approx(float(best), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("level", "num_workers", "more"),
    [
        ("pixel", 0, {}),
        pytest.param("pixel", 2, {"anchor": 0.1}, marks=pytest.mark.slow),
        pytest.param("image", 0, {}, marks=pytest.mark.slow),
        pytest.param(
            "image", 0, {"standardise_targets": "true", "dense": "true", "anchor": 0.1}, marks=pytest.mark.slow
        ),
        pytest.param("patch", 2, {}, marks=pytest.mark.slow),
    ],
)
def test_killed_expert_equals_an_undisturbed_one(
    expert_bundle: Callable[..., Bundle],
    sam: Path,
    phantoms: Path,
    request: pytest.FixtureRequest,
    level: str,
    num_workers: int,
    more: dict[str, Any],
):
    settings = (
        FAST_EXPERT[level]
        | more
        | {
            "epochs": EPOCHS,
            "batch_size": 2,
            "num_workers": num_workers,
            "dataset_dir": phantoms,
            "sam_checkpoint": sam,
        }
    )
    if level in FAST_TEACHER:
        settings["teacher_checkpoint"] = request.getfixturevalue("experts")[level].teacher
    bundle, undisturbed = expert_bundle(level), expert_bundle(level, "undisturbed")
    kill_and_resume(bundle, "training", bundle.root / "eval" / "last.pt", **settings)
    assert undisturbed("training", **settings).code == 0
    assert_same_files(bundle, undisturbed, ["models/expert.pt", "models/expert_last.pt", "eval/last.pt"])


@pytest.mark.slow
@pytest.mark.parametrize("level", FAST_TEACHER)
def test_killed_teacher_equals_an_undisturbed_one(expert_bundle: Callable[..., Bundle], phantoms: Path, level: str):
    settings = FAST_TEACHER[level] | {"epochs": EPOCHS, "batch_size": 4, "dataset_dir": phantoms}
    bundle, undisturbed = expert_bundle(level), expert_bundle(level, "undisturbed")
    kill_and_resume(bundle, "teacher", bundle.root / "eval" / "last_teacher.pt", **settings)
    assert undisturbed("teacher", **settings).code == 0
    assert_same_files(bundle, undisturbed, ["models/teacher.pt", "eval/last_teacher.pt"])
