"""Adapter files: all weights but the base, for networks with the same settings."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
import torch

from samora_monai.checkpoints import load_adapter, load_expert, save_adapter, save_expert
from samora_monai.checkpoints.adapters import adapter_keys
from samora_monai.networks import LEVELS
from tests.checkpoints.test_experts import on_base, randomise_experts
from tests.tiny import IDENTITY, image, randomise, refused, tiny, tiny_sam2, untouched

SAMORA: dict[str, Any] = {"experts": LEVELS, "fusion": "attention"}


@pytest.mark.parametrize("settings", [{}, {"experts": ()}, {"decoder_rank": 2}, SAMORA, SAMORA | {"fusion": "block"}])
def test_round_trip_carries_everything_but_the_base(settings, tmp_path):
    first, second = on_base(**settings, **IDENTITY), on_base(**settings)
    randomise(second.mask_decoder, 9)
    randomise_experts(second, 9)
    save_adapter(first, tmp_path / "adapter.pt")
    content = torch.load(tmp_path / "adapter.pt", weights_only=True)
    base = {f"image_encoder.{key}" for key in on_base(experts=()).image_encoder.state_dict()}
    assert set(content["state_dict"]) == set(first.state_dict()) - base
    report = load_adapter(second, tmp_path / "adapter.pt")
    assert sorted(report.copied) == sorted(content["state_dict"])
    assert set(report.copied) | set(report.kept) == set(second.state_dict())
    x = image(1, 1, 50, 70)
    assert torch.equal(first.eval()(x), second.eval()(x))


def test_meta_describes_the_network(tmp_path):
    save_adapter(on_base(**SAMORA, num_classes=5), tmp_path / "adapter.pt")
    meta = json.loads(torch.load(tmp_path / "adapter.pt", weights_only=True)["meta"])
    assert meta["kind"] == "adapter"
    assert meta["experts"] == ["image", "patch", "pixel"]
    assert (meta["fusion"], meta["fusion_order"]) == ("attention", ["pixel", "patch", "image"])
    assert (meta["num_classes"], meta["rank"], meta["image_size"]) == (5, 4, 64)


def test_the_input_size_may_differ(tmp_path):
    save_adapter(on_base(**SAMORA), tmp_path / "adapter.pt")
    net = on_base(**SAMORA, image_size=96)
    assert load_adapter(net, tmp_path / "adapter.pt").copied == adapter_keys(net)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fusion": "block"}, ("fusion attention", "block")),
        ({"experts": ("image", "patch")}, ("experts ['image', 'patch', 'pixel']",)),
        ({"rank": 2}, ("rank 4", "has 2")),
        ({"num_classes": 2}, ("num_classes 3", "has 2")),
        ({"fusion_width": 16}, ("[32, 32], expected [16, 32]", "a network with other settings")),
        ({"decoder_rank": 2}, ("28 keys missing", "a network with other settings")),
    ],
)
def test_other_settings_are_refused(settings, words, tmp_path):
    save_adapter(on_base(**SAMORA), tmp_path / "adapter.pt")
    net = on_base(**(SAMORA | settings))
    with refused("'adapter.pt'", *words), untouched(net):
        load_adapter(net, tmp_path / "adapter.pt")


def test_orders_with_the_same_keys_are_distinguished(tmp_path):
    """Both have cross-attentions called "image" and "patch", of the same shapes."""
    save_adapter(on_base(**SAMORA, fusion_order=("pixel", "image", "patch")), tmp_path / "adapter.pt")
    net = on_base(**SAMORA, fusion_order=("pixel", "patch", "image"))
    with refused("fusion_order ['pixel', 'image', 'patch']"), untouched(net):
        load_adapter(net, tmp_path / "adapter.pt")


def test_another_base_is_refused(tmp_path):
    save_adapter(on_base(**SAMORA), tmp_path / "adapter.pt")
    net = tiny(**SAMORA)
    randomise(net, 3)
    with refused("base_sha256", "load the SAM checkpoint"), untouched(net):
        load_adapter(net, tmp_path / "adapter.pt")


def test_expert_and_adapter_files_are_distinguished(tmp_path):
    net = on_base(experts=("image",))
    save_expert(net, tmp_path / "expert.pt", "image")
    save_adapter(net, tmp_path / "adapter.pt")
    with refused("'expert.pt' is an expert file"), untouched(net):
        load_adapter(net, tmp_path / "expert.pt")
    with refused("'adapter.pt' is an adapter file"), untouched(net):
        load_expert(net, tmp_path / "adapter.pt", "image")


def test_damage_is_refused(tmp_path):
    net = on_base()
    save_adapter(net, tmp_path / "adapter.pt")
    content = torch.load(tmp_path / "adapter.pt", weights_only=True)
    content["state_dict"]["pixel_mean"] += 1
    torch.save(content, tmp_path / "adapter.pt")
    with refused("adapter file 'adapter.pt' is damaged", "checksum"), untouched(net):
        load_adapter(net, tmp_path / "adapter.pt")


def test_other_windows_on_equal_weights_are_refused(tmp_path):
    """The weights of SAM 2 do not depend on the windows after the first stage."""
    first, second = tiny_sam2(**SAMORA), tiny_sam2(**SAMORA, encoder={"window_spec": (4, 6, 6, 4)})
    save_adapter(first, tmp_path / "adapter.pt")
    save_expert(first, tmp_path / "expert.pt", "patch")
    for load in (load_adapter, partial(load_expert, level="patch")):
        with refused("windows [4, 4, 4, 6, 6, 0, 6, 6, 3]", "has [4, 4, 4, 6, 6, 0, 6, 6, 4]"), untouched(second):
            load(second, tmp_path / ("adapter.pt" if load is load_adapter else "expert.pt"))


def test_an_adapter_from_before_windows_were_noted_loads(tmp_path):
    save_adapter(on_base(**SAMORA), tmp_path / "adapter.pt")
    content = torch.load(tmp_path / "adapter.pt", weights_only=True)
    meta = json.loads(content["meta"])
    assert meta.pop("windows") == [3, 0]
    assert load_adapter(on_base(**SAMORA), content | {"meta": json.dumps(meta)}).copied
