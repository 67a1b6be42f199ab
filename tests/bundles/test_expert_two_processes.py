"""Several processes train one expert, or one teacher: gloo here, nccl where there are GPUs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samora_monai.data import find_unlabeled
from tests.bundles import test_two_processes
from tests.bundles.command_line import FAST_EXPERT, FAST_TEACHER, Bundle, Finished
from tests.bundles.conftest import TrainedExpert
from tests.bundles.weights import write_sam
from tests.tiny import image

OVERLAY = "multi_gpu_train.yaml"
Experts = dict[str, TrainedExpert]
Launch = test_two_processes.Launch
launch = test_two_processes.launch  # the fixture: forked, or under torchrun


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """A training scan of 16 slices and a held-out one of 17, of which the second process has one fewer."""
    folder = tmp_path / "uneven"
    folder.mkdir()
    for name in ("a.npy", "b.npy"):
        np.save(folder / name, image(16, 40, 40).numpy())
    (held_out,) = find_unlabeled(folder).validation
    np.save(held_out["image"], image(17, 40, 40, seed=1).numpy())
    return folder


def student(experts: Experts, level: str, sam: Path, **settings: Any) -> dict[str, Any]:
    teacher = {} if level == "pixel" else {"teacher_checkpoint": experts[level].teacher}
    return FAST_EXPERT[level] | {"sam_checkpoint": sam} | teacher | settings


def losses(finished: list[Finished]) -> tuple[list[float], list[float]]:
    """The training losses of the first process and the held-out losses of all; each is logged once."""
    assert [f.code for f in finished] == [0] * len(finished), finished
    out = "".join(f.out for f in finished)
    assert out.count("versions    ") == 1
    train = re.findall(r"^epoch \d/2 .* loss (\S+)", out, re.MULTILINE)
    held_out = re.findall(r"^validation loss (\S+)", out, re.MULTILINE)
    assert (len(train), len(held_out)) == (2, 2)
    return [float(loss) for loss in train], [float(loss) for loss in held_out]


def learned(bundle: Bundle) -> torch.Tensor:
    """All B matrices of an expert, which start at zero, flattened."""
    state = torch.load(bundle.root / "models" / "expert_last.pt", weights_only=True)["state_dict"]
    return torch.cat([value.flatten() for key, value in state.items() if "linear_b" in key])


@pytest.mark.parametrize(
    ("level", "encoder"),
    [
        ("image", "tiny"),
        ("patch", "tiny"),
        pytest.param("image", "sam2_mini", marks=pytest.mark.slow),
        pytest.param("patch", "sam2_mini", marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one_does(
    launch: Launch,
    experts: Experts,
    expert_bundle: Callable[..., Bundle],
    uneven: Path,
    tmp_path: Path,
    level: str,
    encoder: str,
):
    """Without augmentation, one batch of 16 slices and two of 8 have the same gradient.

    Every held-out slice has the same weight, although one process has nine of them and the other eight.
    """
    sam = write_sam(tmp_path / "sam.pth", encoder=encoder)
    settings = student(experts, level, sam, encoder=encoder, dataset_dir=uneven, warmup=0)
    settings |= {"train::random_transforms": "[]"}
    one, two = expert_bundle(level, "one"), expert_bundle(level, "two")
    single = losses([one("training", **settings | {"batch_size": 16})])
    both = launch(two, "training", OVERLAY, **settings)
    assert "x 2 processes" in "".join(f.out for f in both)
    train, held_out = losses(both)
    assert train == pytest.approx(single[0], rel=0.02)
    assert held_out == pytest.approx(single[1], rel=1e-3)  # four digits are printed
    assert single[1][1] < single[1][0]
    assert sorted(os.listdir(two.root / "models")) == ["expert.pt", "expert_last.pt"]
    difference = (learned(two) - learned(one)).norm() / learned(one).norm()
    assert difference < 0.02, difference


def test_pixel_expert_of_two_processes(
    launch: Launch, experts: Experts, expert_bundle: Callable[..., Bundle], uneven: Path, sam: Path
):
    """Each process draws its own noise."""
    one, two = expert_bundle("pixel", "one"), expert_bundle("pixel", "two")
    settings = student(experts, "pixel", sam, dataset_dir=uneven)
    single = losses([one("training", **settings | {"batch_size": 16})])
    both = losses(launch(two, "training", OVERLAY, **settings))
    assert both[1][0] == pytest.approx(single[1][0], rel=0.1)
    assert sorted(os.listdir(two.root / "models")) == ["decoder.pt", "expert.pt", "expert_last.pt"]
    iteration = torch.load(two.root / "eval" / "last.pt", weights_only=True)["trainer"]["iteration"]
    assert iteration == 2  # eight slices in each process, in one batch, twice


@pytest.mark.parametrize("level", FAST_TEACHER)
def test_teacher_of_two_processes(launch: Launch, expert_bundle: Callable[..., Bundle], uneven: Path, level: str):
    """The same overlay, on `train.yaml` and `teacher.yaml`."""
    bundle = expert_bundle(level)
    _, held_out = losses(launch(bundle, "teacher", OVERLAY, dataset_dir=uneven, **FAST_TEACHER[level]))
    assert np.isfinite(held_out).all()
    assert os.listdir(bundle.root / "models") == ["teacher.pt"]
    state = torch.load(bundle.root / "models" / "teacher.pt", weights_only=True)["state_dict"]
    assert not any(key.startswith(("module.", "teacher.")) for key in state)


def refused_by_all(finished: list[Finished], words: str) -> None:
    """Every process ends with one line, to which torch adds its rank; torchrun may stop the second process first."""
    assert all(f.code != 0 for f in finished), finished
    lines = [line for f in finished for line in f.complaints if "error: " in line]
    assert 1 <= len(lines) <= 2, finished
    assert all(re.match(rf"(\[rank[01]\]: )?error: {words}", line) for line in lines), lines
    assert not any("samora_monai.errors" in f.err for f in finished)


def test_a_missing_teacher_ends_both_processes(
    launch: Launch, expert_bundle: Callable[..., Bundle], uneven: Path, sam: Path
):
    bundle = expert_bundle("image")
    settings = FAST_EXPERT["image"] | {"sam_checkpoint": sam, "dataset_dir": uneven}
    refused_by_all(launch(bundle, "training", OVERLAY, **settings), "there is no SimCLR teacher '")
    assert os.listdir(bundle.root / "models") == []


def test_fewer_held_out_slices_than_processes(
    launch: Launch, experts: Experts, expert_bundle: Callable[..., Bundle], uneven: Path, sam: Path
):
    (held_out,) = find_unlabeled(uneven).validation
    np.save(held_out["image"], image(1, 40, 40).numpy())
    bundle = expert_bundle("pixel")
    finished = launch(bundle, "training", OVERLAY, **student(experts, "pixel", sam, dataset_dir=uneven))
    refused_by_all(finished, "2 processes cannot share 1 slices; start fewer with --nproc_per_node")
    assert os.listdir(bundle.root / "models") == []
