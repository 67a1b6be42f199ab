"""`samora_segmentation` accepts the files of the expert bundles, and refuses all others."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from samora_monai.networks import LEVELS
from tests.bundles.command_line import FAST, Bundle, files, refused
from tests.bundles.conftest import TrainedExpert
from tests.bundles.weights import write_sam
from tests.tiny import truncate

Experts = dict[str, TrainedExpert]


def given(made: Experts, levels: tuple[str, ...], sam: Path, **settings: Any) -> dict[str, Any]:
    """Settings of a fine-tuning with the experts of these levels."""
    files = {f"{level}_expert": made[level].expert for level in levels}
    common = {"sam_checkpoint": sam, "trainable": "adapters", "experts": list(levels), "fusion": "attention"}
    return FAST | {"epochs": 1, "learning_rate": 1e-3} | common | files | settings


@pytest.mark.parametrize(
    ("levels", "settings", "logged"),
    [
        (LEVELS, {}, "experts image, patch, pixel, HL-Attn on attention outputs"),
        (("image", "pixel"), {"fusion": "block"}, "experts image, pixel, HL-Attn on block outputs"),
        (("patch", "image"), {"fusion_order": ["image", "patch"]}, "experts patch, image, HL-Attn on attention"),
        (("pixel",), {}, "experts pixel, HL-Attn on attention outputs"),
        (LEVELS, {"fusion": None, "trainable": "decoder"}, "experts image, patch, pixel"),
        (("patch",), {"fusion": None, "trainable": "decoder", "decoder": "hierarchical"}, "experts patch"),
    ],
    ids=["all", "two-block", "order", "one", "sum", "one-sum-hierarchical"],
)
def test_fine_tuning_leaves_base_and_experts_unchanged(
    experts: Experts,
    bundle: Bundle,
    phantoms: Path,
    sam: Path,
    levels: tuple[str, ...],
    settings: dict[str, Any],
    logged: str,
):
    """One epoch of each ablation, by settings alone; base and experts are bitwise unchanged."""
    finished = bundle("training", dataset_dir=phantoms, **given(experts, levels, sam, **settings))
    assert (finished.code, finished.complaints) == (0, [])
    assert logged in finished.out
    written = json.loads(bundle.model.with_suffix(".json").read_text())
    assert written["experts"] == list(levels)
    assert written["fusion"] == settings.get("fusion", "attention")
    assert written["fusion_order"] == settings.get("fusion_order", ["pixel", "patch", "image"])

    state = torch.load(bundle.model, weights_only=True)
    names = re.compile(r"image_encoder\.(blocks\.\d+)\.attn\.experts\.(\w+)\.(.*)")
    found = {match.groups(): state[key] for key in state if (match := names.fullmatch(key))}
    made = {}
    for level in levels:
        for key, value in torch.load(experts[level].expert, weights_only=True)["state_dict"].items():
            block, rest = re.fullmatch(r"(blocks\.\d+)\.(.*)", key).groups()
            made[block, level, rest] = value
    assert found.keys() == made.keys()
    assert [key for key in made if not torch.equal(made[key], found[key])] == []
    base = torch.load(sam, weights_only=True)
    assert [k for k in base if k.startswith("image_encoder.") and not torch.equal(base[k], state[k])] == []
    order = [level for level in written["fusion_order"] if level in levels and written["fusion"]]
    attend = {match[1] for key in state if (match := re.search(r"\.hl_attn\.cross\.(\w+)\.", key))}
    assert attend == set(order[1:])  # the lowest level attends to none


# ---- wrong files: each function replaces the file of the patch expert and returns words of the message


def of_another_level(experts: Experts, expert: Path) -> list[str]:
    shutil.copy(experts["pixel"].expert, expert)
    return ["'patch.pt' is of level pixel; expected one of level patch"]


def rotted(experts: Experts, expert: Path) -> list[str]:
    """One bit of one tensor is flipped."""
    content = bytearray(experts["patch"].expert.read_bytes())
    state = torch.load(experts["patch"].expert, weights_only=True)["state_dict"]
    at = content.find(state["blocks.3.linear_b_v.weight"].numpy().tobytes())
    assert at > 0
    content[at + 100] ^= 0x10
    expert.write_bytes(content)
    return [f"'{expert}' is damaged", "checksum"]


def truncated(experts: Experts, expert: Path) -> list[str]:
    shutil.copy(experts["patch"].expert, expert)
    truncate(expert)
    return [f"'{expert}' is damaged or no PyTorch file"]


def missing(experts: Experts, expert: Path) -> list[str]:
    return [f"no checkpoint '{expert}'"]


def a_teacher(experts: Experts, expert: Path) -> list[str]:
    shutil.copy(experts["patch"].teacher, expert)
    return ["'patch.pt' is a teacher file; expected an expert file"]


def a_run(experts: Experts, expert: Path) -> list[str]:
    shutil.copy(experts["patch"].bundle.root / "eval" / "last.pt", expert)
    return ["'patch.pt'", "is no expert file"]


@pytest.mark.parametrize("spoil", [of_another_level, rotted, truncated, missing, a_teacher, a_run])
def test_wrong_file(
    experts: Experts,
    bundle: Bundle,
    phantoms: Path,
    sam: Path,
    tmp_path: Path,
    spoil: Callable[[Experts, Path], list[str]],
):
    words = spoil(experts, tmp_path / "patch.pt")
    before = files(bundle.root)
    settings = given(experts, LEVELS, sam, patch_expert=tmp_path / "patch.pt")
    refused(bundle("training", dataset_dir=phantoms, **settings), *words)
    assert files(bundle.root) == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 8}, ["'expert.pt' was made for rank 4 but the network has 8", "rank 4"]),
        ({"encoder": {"embed_dim": 32, "depth": 2, "num_heads": 2, "global_attn_indexes": [1]}}, ["'sam.pth'", "fit"]),
        ({"pixel_expert": None}, ["'pixel' has no file", "--pixel_expert FILE", "fewer levels in --experts"]),
        ({"experts": ["image", "patch"]}, ["--pixel_expert", "but --experts is ('image', 'patch')", "add 'pixel'"]),
        ({"fusion_order": ["image", "patch"]}, ["fusion_order", "'image', 'patch'"]),
    ],
    ids=["rank", "preset", "missing", "too-many", "order"],
)
def test_wrong_network(
    experts: Experts, bundle: Bundle, phantoms: Path, sam: Path, settings: dict[str, Any], words: list[str]
):
    before = files(bundle.root)
    refused(bundle("training", dataset_dir=phantoms, **given(experts, LEVELS, sam, **settings)), *words)
    assert files(bundle.root) == before


def test_another_base(experts: Experts, bundle: Bundle, phantoms: Path, tmp_path: Path):
    before = files(bundle.root)
    settings = given(experts, LEVELS, write_sam(tmp_path / "other.pth", seed=7))
    finished = bundle("training", dataset_dir=phantoms, **settings)
    refused(finished, "'expert.pt' was made for base_sha256", "load the SAM checkpoint it was trained on first")
    assert files(bundle.root) == before
