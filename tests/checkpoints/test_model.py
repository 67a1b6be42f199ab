"""Strict loading of model.pt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from samora_monai.checkpoints import load_for_inference, load_model
from samora_monai.networks import LEVELS
from tests.tiny import IDENTITY, image, randomise, refused, tiny, untouched

SETTINGS: dict[str, Any] = {"experts": LEVELS, "fusion": "block"}


@pytest.mark.parametrize("training", [False, True])
def test_round_trip(training, tmp_path):
    first = tiny(**SETTINGS, **IDENTITY)
    randomise(first, 1)
    state = first.state_dict()
    torch.save({"model": state, "optimizer": {"lr": 0.1}, "epoch": 3} if training else state, tmp_path / "model.pt")
    second = tiny(**SETTINGS)
    report = load_model(second, tmp_path / "model.pt")
    assert report.copied == list(state)
    assert (report.resized, report.kept, report.dropped) == ([], [], [])
    x = image(1, 1, 50, 70)
    assert torch.equal(first.eval()(x), second.eval()(x))


def test_missing_and_superfluous_keys_are_refused(tmp_path):
    net = tiny(**SETTINGS)
    state = tiny(**SETTINGS).state_dict()
    key = "image_encoder.blocks.1.hl_attn.cross.patch.q.weight"
    with refused(f"1 keys missing ({key})", "other settings"), untouched(net):
        load_model(net, {k: v for k, v in state.items() if k != key})
    with refused("1 keys not expected (ema.decay)"), untouched(net):
        load_model(net, state | {"ema.decay": torch.ones(1)})
    with refused("holds a float as 'ema.decay'"), untouched(net):
        load_model(net, state | {"ema.decay": 0.9})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_classes": 9}, ("36 keys missing (mask_decoder.output_hypernetworks_mlps.3", "9 classes")),
        ({"num_classes": 2}, ("6 keys not expected (mask_decoder.output_hypernetworks_mlps.2", "2 classes")),
        ({"image_size": 96}, ("image_encoder.pos_embed is [1, 4, 4, 32], expected [1, 6, 6, 32]", "input 96")),
        ({"experts": ("task",), "fusion": None}, ("experts.image", "experts task")),
        ({"rank": 8}, ("is [4, 32], expected [8, 32]",)),
        ({"fusion_width": 16}, ("is [32, 32], expected [16, 32]",)),
    ],
)
def test_other_settings_are_refused(settings, words, tmp_path):
    torch.save(tiny(**SETTINGS).state_dict(), tmp_path / "model.pt")
    net = tiny(**(SETTINGS | settings))
    with refused("'model.pt'", "give it the same ones", *words), untouched(net):
        load_model(net, tmp_path / "model.pt")


@pytest.mark.parametrize("settings", [{"experts": ("task",)}, SETTINGS])
@torch.no_grad()
def test_inference_merges_experts_that_are_not_fused(settings, tmp_path):
    """Into the weights of the network, not of the file; the labels are the same."""
    first, second, third = (tiny(**settings).eval() for _ in range(3))
    randomise(first, 1)
    torch.save(first.state_dict(), tmp_path / "model.pt")
    before, x = (tmp_path / "model.pt").read_bytes(), image(1, 1, 50, 70)
    report = load_for_inference(second, tmp_path / "model.pt")
    assert report.copied == list(first.state_dict())
    torch.testing.assert_close(second(x), first(x), atol=1e-5, rtol=0)
    merged = second.image_encoder.fusion is None
    assert second.image_encoder.experts == (() if merged else first.image_encoder.experts)
    assert (tmp_path / "model.pt").read_bytes() == before
    load_model(third, tmp_path / "model.pt")
