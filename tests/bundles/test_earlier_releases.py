"""Models that an earlier release wrote: their settings load, and their labels are those that the release made.

`tests/goldens/release_0.1.npz` holds the labels of the first release (1cd0bea) for the weights and settings below
on the scans in `tests/goldens/release_0.1_scans`, phantoms of that release.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from samora_monai.networks import build_segmenter
from tests.bundles.command_line import Bundle
from tests.tiny import randomise

GOLDENS = Path(__file__).parents[1] / "goldens"
LABELS, SCANS = np.load(GOLDENS / "release_0.1.npz"), GOLDENS / "release_0.1_scans"
ENCODER = {"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0, "window_size": 3, "global_attn_indexes": [1]}
NETWORK: dict[str, Any] = {"encoder": ENCODER | {"out_chans": 32}, "image_size": 64}
SETTINGS: dict[str, Any] = {  # models/model.json of that release: flat, without a version
    **NETWORK,
    "decoder": "sam",
    "stage": 3,
    "class_balanced_attention": False,
    "experts": ["task"],
    "rank": 4,
    "fusion": None,
    "fusion_order": ["pixel", "patch", "image"],
    "fusion_width": None,
    "fusion_start": "zero",
    "decoder_rank": 0,
    "class_names": ["background", "spleen", "right kidney", "left kidney", "liver", "aorta"],
    "modality": "CT",
    "window": [-125, 275],
    "percentiles": [0.5, 99.5],
}
EXPERTS: dict[str, Any] = {"experts": ["image", "patch", "pixel"], "fusion": "attention"}
SYSTEMS: dict[str, dict[str, Any]] = {
    "samed": {},
    "samora": EXPERTS,
    "hsamora": EXPERTS | {"fusion": "block", "decoder": "hierarchical", "stage": 2},
}


def write_released_model(bundle: Bundle, system: str, *without: str) -> None:
    """`models/model.pt` and `model.json`; `without` some fields, as releases before them had it."""
    net = build_segmenter(num_classes=6, **NETWORK | SYSTEMS[system])
    randomise(net, 0)
    torch.save(net.state_dict(), bundle.model)
    settings = SETTINGS | SYSTEMS[system]
    bundle.model.with_suffix(".json").write_text(
        json.dumps({key: settings[key] for key in settings if key not in without})
    )


@pytest.mark.parametrize("system", SYSTEMS)
def test_labels_are_those_of_the_release(bundle: Bundle, tmp_path: Path, system: str):
    write_released_model(bundle, system)
    finished = bundle("inference", dataset_dir=SCANS / "imagesVal", output_dir=tmp_path)
    assert (finished.code, finished.complaints) == (0, [])
    for case in ("phantom_003", "phantom_004"):
        label = np.asanyarray(nib.load(tmp_path / f"{case}_seg.nii.gz").dataobj)
        expected = LABELS[f"{system}_{case}"]
        # voxels at which two classes are equal to the last digit may differ between processors
        assert label.shape == expected.shape and (label != expected).mean() < 1e-4


def test_a_model_of_before_an_option_behaves_as_it_did(bundle: Bundle, tmp_path: Path):
    """Settings that were added later have the value that stands for the behaviour of before."""
    write_released_model(bundle, "samed", "stage", "class_balanced_attention", "fusion_start", "fusion_width")
    finished = bundle("evaluating", dataset_dir=SCANS, output_dir=tmp_path)
    assert (finished.code, finished.complaints) == (0, [])
    finished = bundle("inference", dataset_dir=SCANS / "imagesVal", output_dir=tmp_path)
    label = np.asanyarray(nib.load(tmp_path / "phantom_003_seg.nii.gz").dataobj)
    assert finished.code == 0 and (label != LABELS["samed_phantom_003"]).mean() < 1e-4
