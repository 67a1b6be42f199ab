"""The way of a user from SAM 2's checkpoint through the four bundles; SAM's way is that of the other test files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from samora_monai.networks import LEVELS
from tests.bundles.command_line import FAST, FAST_EXPERT, FAST_TEACHER, Bundle
from tests.bundles.weights import write_expert, write_sam

SAM2 = {"encoder": "sam2_mini"}


@pytest.fixture(scope="module")
def sam2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `sam2_mini` as Meta's files hold it: in `"model"`, with what only video needs."""
    file = write_sam(tmp_path_factory.mktemp("sam2") / "sam2.pt", **SAM2)
    state = torch.load(file, weights_only=True) | {"maskmem_tpos_enc": torch.ones(7, 1, 1, 64)}
    torch.save({"model": state}, file)
    return file


@pytest.mark.parametrize(
    "level",
    ["pixel", pytest.param("image", marks=pytest.mark.slow), pytest.param("patch", marks=pytest.mark.slow)],
)
def test_an_expert_learns_on_sam2_and_is_drawn(
    expert_bundle: Callable[..., Bundle], phantoms: Path, sam2: Path, tmp_path: Path, level: str
):
    bundle = expert_bundle(level)
    if level in FAST_TEACHER:
        assert bundle("teacher", dataset_dir=phantoms, **FAST_TEACHER[level]).code == 0
    settings = FAST_EXPERT[level] | SAM2 | {"sam_checkpoint": sam2}
    finished = bundle("training", dataset_dir=phantoms, **settings)
    assert (finished.code, finished.complaints) == (0, [])
    assert f"Hiera 32 wide, 8 deep, input 64; experts {level}" in finished.out
    content = torch.load(bundle.root / "models" / "expert.pt", weights_only=True)
    assert json.loads(content["meta"])["preset"] == "sam2_mini"
    values = [value for key, value in content["state_dict"].items() if "linear_b" in key]
    assert len(values) == 2 * 8 and all(value.abs().max() > 0 for value in values)  # 0 at first

    finished = bundle("inference", dataset_dir=phantoms / "imagesVal", output_dir=tmp_path, sam_checkpoint=sam2)
    assert (finished.code, finished.complaints) == (0, [])
    assert {path.name for path in tmp_path.glob("*.png")} == {"phantom_003.png", "phantom_004.png"}


@pytest.mark.parametrize(
    ("fusion", "decoder"),
    [
        ("attention", "sam"),
        pytest.param("block", "sam", marks=pytest.mark.slow),
        pytest.param("attention", "hierarchical", marks=pytest.mark.slow),
    ],
)
def test_samora_on_sam2_trains_scores_and_segments(
    bundle: Bundle, phantoms: Path, sam2: Path, tmp_path: Path, fusion: str, decoder: str
):
    """With three experts; SAM 2 and the frozen experts are bitwise unchanged."""
    files = {f"{level}_expert": write_expert(tmp_path / f"{level}.pt", sam2, level, **SAM2) for level in LEVELS}
    settings = FAST | SAM2 | files | {"sam_checkpoint": sam2, "experts": list(LEVELS), "fusion": fusion}
    settings |= {"decoder": decoder, "trainable": "adapters", "epochs": 1, "learning_rate": 1e-3}
    finished = bundle("training", dataset_dir=phantoms, **settings)
    assert (finished.code, finished.complaints) == (0, [])
    state, base = torch.load(bundle.model, weights_only=True), torch.load(sam2, weights_only=True)["model"]
    kept = [key for key in base if key.startswith("image_encoder.")]
    assert len(kept) > 100 and all(torch.equal(base[key], state[key]) for key in kept)
    for level in LEVELS:
        for key, value in torch.load(files[f"{level}_expert"], weights_only=True)["state_dict"].items():
            block, rest = key.split(".linear_")
            assert torch.equal(state[f"image_encoder.trunk.{block}.attn.experts.{level}.linear_{rest}"], value)

    finished = bundle("evaluating", dataset_dir=phantoms, output_dir=tmp_path / "scores")
    assert (finished.code, finished.complaints) == (0, [])
    assert "2 cases; details in" in finished.out and (tmp_path / "scores" / "report.html").is_file()
    finished = bundle("inference", dataset_dir=phantoms / "imagesVal", output_dir=tmp_path / "labels")
    assert (finished.code, finished.complaints) == (0, [])
    for scan in (phantoms / "imagesVal").iterdir():
        label = nib.load(tmp_path / "labels" / scan.name.replace(".nii", "_seg.nii"))
        assert label.shape == nib.load(scan).shape and np.asanyarray(label.dataobj).max() < 6
