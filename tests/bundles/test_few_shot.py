"""Few labels: a part of the scans or of their slices, and SAMora's second stage on three expert files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow

from samora_monai.networks import LEVELS
from tests.bundles.command_line import FAST, Bundle
from tests.bundles.weights import write_expert, write_sam

Build = Callable[..., ConfigWorkflow]


@pytest.mark.parametrize(
    ("settings", "scans", "slices", "total"),
    [
        ({}, 2, 16, 16),  # the phantoms have 10 and 6
        ({"num_labeled": 1}, 1, 10, 10),
        ({"slice_fraction": 0.25}, 2, 4, 16),
        ({"slice_fraction": 0.01}, 2, 1, 16),
        ({"num_labeled": 1, "slice_fraction": 0.3}, 1, 3, 10),
    ],
)
def test_number_of_slices(
    bundle: Bundle,
    phantoms: Path,
    in_process: Build,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    scans: int,
    slices: int,
    total: int,
):
    """The data set of the training has them, and the summary states them."""
    caplog.set_level("INFO", "samora_monai")
    workflow = in_process(bundle, "training", dataset_dir=str(phantoms), **FAST | settings)
    workflow.initialize()
    dataset = workflow.parser.get_parsed_content("train::dataset")
    assert (dataset.num_volumes, len(dataset), dataset.num_slices_total) == (scans, slices, total)
    assert f"{scans} training ({slices} of {total} slices)" in caplog.text


@pytest.fixture
def stage_1(tmp_path: Path) -> dict[str, Any]:
    """The settings of stage 2: SAM and three experts that were taught on it."""
    sam = write_sam(tmp_path / "sam.pth")
    experts = {f"{level}_expert": str(write_expert(tmp_path / f"{level}.pt", sam, level)) for level in LEVELS}
    return {"sam_checkpoint": str(sam), "trainable": "adapters", "experts": list(LEVELS), **experts}


@pytest.mark.parametrize("fusion", ["attention", "block"])
def test_samora_trains_hl_attn_and_the_decoder(
    bundle: Bundle, phantoms: Path, stage_1: dict[str, Any], in_process: Build, fusion: str
):
    """Bit for bit: the base is SAM's file, the experts are theirs, and every other tensor that may train has moved."""
    settings = FAST | stage_1 | {"fusion": fusion, "epochs": 1, "learning_rate": 1e-3}
    workflow = in_process(bundle, "training", dataset_dir=str(phantoms), **settings)
    workflow.initialize()
    net = workflow.parser.get_parsed_content("network_def")
    trains = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    before = {key: value.clone() for key, value in net.state_dict().items()}
    workflow.run()
    workflow.finalize()
    after = torch.load(bundle.model, weights_only=True)

    assert list(after) == list(before)
    assert {key for key in after if not torch.equal(after[key], before[key])} == trains
    groups = {re.sub(r"\.(layers|blocks)\.\d+|\d+\.", "", name).split(".")[1] for name in trains}
    assert all(".hl_attn." in name or not name.startswith("image_encoder.") for name in trains)
    assert {"transformer", "output_upscaling", "output_hypernetworks_mlps", "mask_tokens"} < groups
    assert sum(".hl_attn." in name for name in trains) > len(net.image_encoder.blocks)

    sam = torch.load(stage_1["sam_checkpoint"], weights_only=True)
    for key in (key for key in sam if key.startswith("image_encoder.")):
        assert torch.equal(after[key], sam[key]), key
    for level in LEVELS:
        expert = torch.load(stage_1[f"{level}_expert"], weights_only=True)["state_dict"]
        assert any(value.any() for key, value in expert.items() if "linear_b" in key)
        for key, value in expert.items():
            block, rest = re.fullmatch(r"(blocks\.\d+)\.(.*)", key).groups()
            assert torch.equal(after[f"image_encoder.{block}.attn.experts.{level}.{rest}"], value)


@pytest.mark.parametrize("decoder", ["sam", "hierarchical"])
def test_samora_is_evaluated_and_used_like_any_model(
    bundle: Bundle, phantoms: Path, stage_1: dict[str, Any], tmp_path: Path, decoder: str
):
    """Through the command line: after training, neither SAM, nor the experts, nor a setting is needed."""
    settings = FAST | stage_1 | {"fusion": "attention", "decoder": decoder, "epochs": 1}
    training = bundle("training", dataset_dir=phantoms, **settings)
    assert (training.code, training.complaints) == (0, [])
    assert "HL-Attn on attention outputs" in training.out
    assert [f"{level}.pt" in training.out for level in LEVELS] == [True] * 3  # each load is told
    written = json.loads(bundle.model.with_suffix(".json").read_text())
    assert [written[key] for key in ("experts", "fusion", "decoder")] == [list(LEVELS), "attention", decoder]
    for file in (stage_1["sam_checkpoint"], *(stage_1[f"{level}_expert"] for level in LEVELS)):
        os.unlink(file)
    for workflow, data, results in (
        ("evaluating", phantoms, {"metrics.csv", "cases.csv", "summary.csv", "report.html"}),
        ("inference", phantoms / "imagesVal", {"phantom_003_seg.nii.gz", "phantom_004_seg.nii.gz"}),
    ):
        finished = bundle(workflow, dataset_dir=data, output_dir=tmp_path / workflow)
        assert (finished.code, finished.complaints) == (0, [])
        assert set(os.listdir(tmp_path / workflow)) == results
