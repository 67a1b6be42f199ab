"""Experts and HL-Attn in Hiera against their equations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from samora_monai.networks import LEVELS
from tests.networks import literal_hiera
from tests.networks.test_experts import FUSED, SYSTEMS, reset_experts, same_base
from tests.tiny import HIERA, IDENTITY, image, refused, tiny_sam2

# of each block: side of its windows, scale of width and heads, whether it pools
BLOCKS = [
    (4, 1, False), (4, 1, False),
    (4, 2, True), (6, 2, False),
    (6, 4, True), (0, 4, False), (6, 4, False),
    (6, 8, True), (3, 8, False),
]  # fmt: skip
HL_ATTN: dict[str, Any] = {"experts": LEVELS, "fusion": "attention", "fusion_width": 8}


@pytest.mark.parametrize("name", SYSTEMS)
@torch.no_grad()
def test_blocks_compute_the_equations(name):
    """Ordinary, global and pooling blocks; grids of 16, 8, 4 and 2 in windows of 4, 6, 6 and 3."""
    settings = SYSTEMS[name]
    encoder = tiny_sam2(64, 3, **settings, **IDENTITY).image_encoder.double()
    experts, fusion = tuple(settings["experts"]), settings.get("fusion")
    order = tuple(n for n in settings.get("fusion_order", ("pixel", "patch", "image")) if n in experts)
    pairs: list[tuple[nn.Module, np.ndarray, np.ndarray]] = []
    for block in encoder.encoder_blocks():
        block.register_forward_hook(lambda m, x, y: pairs.append((m, x[0][0].numpy(), y[0].numpy())))
    encoder(image(1, 3, 64, 64).double())
    assert len(pairs) == len(BLOCKS)
    for (block, x, y), (side, scale, pooled) in zip(pairs, BLOCKS, strict=True):
        p = {key: value.numpy() for key, value in block.state_dict().items()}
        heads = HIERA["num_heads"] * scale
        expected = literal_hiera.block(p, x, side, heads, pooled, experts, fusion, order)
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("half", [slice(0, 16), slice(16, 32)])
@pytest.mark.parametrize("target", ["q", "v"])
@torch.no_grad()
def test_an_expert_reaches_both_halves_of_q_and_v_where_the_width_doubles(target, half):
    """A delta of `dim` instead of `out_dim` channels would leave one half of q and v as they are."""
    net = tiny_sam2(experts=("task",)).double().eval()
    reset_experts(net)
    x = image(1, 1, 64, 64).double()
    before = net(x)
    expert = net.image_encoder.encoder_blocks()[2].attn.experts["task"]
    weight = getattr(expert, f"linear_b_{target}").weight
    assert weight.shape == (32, 4)
    nn.init.normal_(weight[half])
    assert (net(x) - before).abs().max() > 1e-4


@pytest.mark.parametrize("name", FUSED)
@torch.no_grad()
def test_new_experts_are_fused_into_zero_with_any_weights_of_hl_attn(name):
    """On block outputs up to rounding only, because the MLP multiplies matrices of more rows for the experts."""
    net = tiny_sam2(**SYSTEMS[name]).eval()
    reset_experts(net)
    sam = same_base(net, experts=())
    x = image(2, 1, 40, 50)
    atol = 0 if SYSTEMS[name]["fusion"] == "attention" else 1e-5
    torch.testing.assert_close(net(x), sam(x), rtol=0, atol=atol)
    x = x.double()
    torch.testing.assert_close(net.double()(x), sam.double()(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("fusion", ["attention", "block"])
@torch.no_grad()
def test_new_hl_attn_is_the_highest_expert_alone(fusion):
    net = tiny_sam2(experts=LEVELS, fusion=fusion, num_classes=2).eval()
    projections = [p for key, p in net.named_parameters() if ".hl_attn." in key and key.endswith("proj.weight")]
    assert len(projections) == 2 * len(BLOCKS)
    for projection in projections:
        nn.init.zeros_(projection)
    alone = same_base(net, experts=("image",), num_classes=2)
    x = image(2, 1, 64, 64).double()
    torch.testing.assert_close(net.double()(x), alone.double()(x), rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_width_of_hl_attn_doubles_with_the_tokens():
    net = tiny_sam2(**HL_ATTN)
    widths = [block.hl_attn.cross["image"].q.weight.shape for block in net.image_encoder.encoder_blocks()]
    assert widths == [(8 * scale, 16 * scale) for _, scale, _ in BLOCKS]
    heads = [block.hl_attn.cross["image"].num_heads for block in net.image_encoder.encoder_blocks()]
    assert heads == [scale for _, scale, _ in BLOCKS]  # half of the block's, which has 2 in the first stage


@pytest.mark.parametrize("settings", [{"experts": ("task",)}, {"experts": LEVELS, "rank": 2}])
@torch.no_grad()
def test_merged_experts_compute_the_same(settings):
    net = tiny_sam2(**settings).eval().double()
    x = image(2, 1, 50, 70).double()
    before = net(x)
    net.image_encoder.merge_experts()
    torch.testing.assert_close(net(x), before, rtol=0, atol=1e-11)
    assert net.image_encoder.experts == ()
    assert list(net.state_dict()) == list(tiny_sam2(experts=()).state_dict())


def test_fused_experts_are_not_merged():
    net = tiny_sam2(**HL_ATTN)
    with refused("HL-Attn", "cannot be merged"):
        net.image_encoder.merge_experts()


@pytest.mark.parametrize("fusion", [None, "attention", "block"])
def test_gradient_checkpointing_changes_neither_values_nor_gradients(fusion):
    results = []
    for checkpointing in (False, True):
        net = tiny_sam2(experts=LEVELS, fusion=fusion, gradient_checkpointing=checkpointing, train="all").double()
        logits = net(image(2, 1, 64, 64).double())
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in net.parameters() if p.requires_grad)])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-12, atol=1e-12)
