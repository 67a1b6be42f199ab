"""The networks and handlers of the study: milestones, U-Net, random experts, the probe, options of the ablations."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine

from benchmarks.fewshot import probe, random_experts
from benchmarks.fewshot.milestones import KeepModels, model_at
from benchmarks.fewshot.unet import StretchedUNet
from samora_monai.checkpoints import load_expert, load_sam, save_expert
from samora_monai.checkpoints.files import write_checkpoint
from samora_monai.checkpoints.model_settings import ModelSettings, read_model_settings
from samora_monai.networks import LEVELS, build_segmenter, set_trainable
from tests.tiny import TINY, image, refused, tiny


def test_models_of_the_milestones_are_kept(tmp_path: Path):
    net = torch.nn.Linear(1, 1, bias=False)

    def step(engine: Engine, batch: int) -> None:
        net.weight.data.fill_(engine.state.epoch)

    trainer = Engine(step)
    settings = ModelSettings.from_dict({"encoder": "tiny", "class_names": ["background", "atrium"], "modality": "MR"})
    KeepModels(tmp_path / "model.pt", net, settings, [2, 4]).attach(trainer)
    trainer.run([0], max_epochs=4)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        f"model_{n}.{end}" for n in (2, 4) for end in ("json", "pt")
    ]
    for epoch in (2, 4):
        file = model_at(tmp_path / "model.pt", epoch)
        assert float(torch.load(file, weights_only=True)["weight"]) == epoch
        assert read_model_settings(file) == settings


def test_unet_stretches_and_standardises():
    torch.manual_seed(0)
    net = StretchedUNet(3, 32).eval()
    x = image(2, 1, 40, 24)
    logits = net(x)
    assert logits.shape == (2, 3, 40, 24)
    assert torch.allclose(net(0.5 * x + 0.2), logits, atol=0.05)  # grey levels are standardised, up to the 1e-3
    assert 1.6e6 < sum(p.numel() for p in net.parameters()) < 1.7e6


@torch.no_grad()
def test_random_experts_have_the_trained_norms():
    net = tiny(experts=["patch"])
    expert = net.image_encoder.blocks[1].attn.experts["patch"]
    trained = [delta.clone() for delta in expert.deltas()]
    torch.manual_seed(1)
    random_experts.randomise_experts(net)
    for before, after in zip(trained, expert.deltas(), strict=True):
        assert float(after.norm()) == pytest.approx(float(before.norm()), rel=1e-5)
        assert abs(float((before * after).sum() / (before.norm() * after.norm()))) < 0.2  # another direction


def test_fusion_starts_from_zero_or_not():
    settings: dict[str, Any] = {"experts": LEVELS, "fusion": "attention"}
    for start, zero in (("zero", True), ("random", False)):
        net = build_segmenter(TINY, 64, fusion_start=start, **settings)
        projections = [p for n, p in net.named_parameters() if "hl_attn" in n and n.endswith("proj.weight")]
        assert len(projections) == 2 * 2 and all(bool((p == 0).all()) is zero for p in projections)
    with refused("unknown fusion_start 'noise'", "'zero' or 'random'"):
        build_segmenter(TINY, 64, fusion_start="noise", **settings)


def test_experts_train_beside_hl_attn():
    net = tiny(experts=LEVELS, fusion="attention")
    adapters = set(set_trainable(net, "adapters"))
    both = set(set_trainable(net, "adapters+experts"))
    assert both == adapters | set(set_trainable(net, "experts")) and len(both - adapters) == 2 * 3 * 4
    assert any(".hl_attn." in name for name in both)


def test_random_experts_as_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base = build_segmenter("tiny", 112, experts=())
    write_checkpoint(base.state_dict(), tmp_path / "base.pt")
    files = []
    for level in LEVELS:
        net = build_segmenter("tiny", 112, experts=[level])
        load_sam(net, tmp_path / "base.pt")
        torch.nn.init.ones_(net.image_encoder.blocks[0].attn.experts[level].linear_b_q.weight)
        save_expert(net, tmp_path / f"{level}.pt", level)
        files += [str(tmp_path / f"{level}.pt"), str(tmp_path / f"{level}_random.pt")]
    monkeypatch.setattr(sys, "argv", ["random_experts.py", str(tmp_path / "base.pt"), "tiny", "3", *files])
    random_experts.main()
    states = [torch.load(file, weights_only=True)["state_dict"] for file in files[1::2]]
    assert not torch.equal(states[0]["blocks.0.linear_b_q.weight"], states[1]["blocks.0.linear_b_q.weight"])
    assert not states[0]["blocks.0.linear_b_v.weight"].any()  # neither has the trained one
    net = build_segmenter("tiny", 112, experts=LEVELS, fusion="attention")
    load_sam(net, tmp_path / "base.pt")
    load_expert(net, files[1], "image")
    found = net.image_encoder.blocks[0].attn.experts["image"].linear_b_q.weight
    assert torch.equal(found, states[0]["blocks.0.linear_b_q.weight"])


def test_average_precision():
    truth = torch.tensor([True, False, True, False])
    assert probe.average_precision(torch.tensor([4.0, 3.0, 2.0, 1.0]), truth) == pytest.approx((1 + 2 / 3) / 2)
    assert probe.average_precision(torch.tensor([1.0, 4.0, 2.0, 3.0]), truth) == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_probe_finds_what_the_tokens_hold_and_the_position_does_not():
    generator = torch.Generator().manual_seed(0)

    def scan() -> probe.Scan:
        patches = (torch.rand(6, 1, probe.GRID, probe.GRID, generator=generator) > 0.8).float()
        return torch.nn.functional.interpolate(patches, scale_factor=16), patches

    def tokens(image: torch.Tensor) -> torch.Tensor:
        inside = torch.nn.functional.avg_pool2d(image, 16)
        return torch.cat([inside, 1 - inside, torch.zeros_like(inside)], 1)

    known, new = [scan(), scan()], [scan()]
    assert probe.probe(tokens, known, new) == pytest.approx([1.0])
    assert probe.probe(None, known, new)[0] < 0.4


def test_probe_of_a_folder_without_a_study_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "a.nii.gz").touch()
    (tmp_path / "stage1" / "home").mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["probe.py", str(tmp_path), "--folder", str(tmp_path)])
    with pytest.raises(SystemExit, match="1 scans have labels but 4 are to be fitted on"):
        probe.main()
    (tmp_path / "stage1" / "other").mkdir()
    with pytest.raises(SystemExit, match="has 2 folders in stage1, expected one"):
        probe.main()
