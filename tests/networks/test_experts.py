"""Experts and HL-Attn against their equations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from samora_monai.networks import LEVELS, Segmenter, build_segmenter
from samora_monai.networks.two_way_transformer import TokenAttention
from tests.networks import literal
from tests.tiny import IDENTITY, TINY, image, randomise, refused, tiny, tiny_sam2

SYSTEMS: dict[str, dict[str, Any]] = {
    "sam": {"experts": ()},
    "one expert": {"experts": ("task",)},
    "three experts, deltas added": {"experts": LEVELS, "rank": 2},
    "attention": {"experts": LEVELS, "fusion": "attention"},
    "block": {"experts": LEVELS, "fusion": "block"},
    "attention, narrow": {"experts": LEVELS, "fusion": "attention", "fusion_width": 16, "rank": 3},
    "block, narrow": {"experts": LEVELS, "fusion": "block", "fusion_width": 8},
    "attention, other order": {
        "experts": LEVELS,
        "fusion": "attention",
        "fusion_order": ("image", "pixel", "patch"),
        "decoder_rank": 2,
    },
    "block, other order of both": {
        "experts": ("patch", "pixel", "image"),
        "fusion": "block",
        "fusion_order": ("patch", "image", "pixel"),
    },
    "attention, two levels": {"experts": ("image", "pixel"), "fusion": "attention"},
    "block, two levels": {"experts": ("pixel", "patch"), "fusion": "block"},
    "attention, one level": {"experts": ("patch",), "fusion": "attention"},
}
FUSED = [name for name, settings in SYSTEMS.items() if "fusion" in settings]


@pytest.mark.parametrize(("size", "batch"), [(64, 2), (96, 1)])
@pytest.mark.parametrize("name", SYSTEMS)
@torch.no_grad()
def test_blocks_compute_the_equations(name, size, batch):
    """Grid 4 pads the windows of 3, grid 6 is cut into four of them; the second block is global."""
    settings = SYSTEMS[name]
    encoder = tiny(size, 3, **settings, **IDENTITY).image_encoder.double()
    experts, fusion = tuple(settings["experts"]), settings.get("fusion")
    order = tuple(n for n in settings.get("fusion_order", ("pixel", "patch", "image")) if n in experts)
    seen: list[int] = []

    def compare(block, inputs, output):
        side = (3, size // 16)[len(seen)]
        p = {key: value.numpy() for key, value in block.state_dict().items()}
        for x, y in zip(inputs[0].numpy(), output.numpy(), strict=True):
            expected = literal.block(p, x, side, TINY["num_heads"], experts, fusion, order)
            np.testing.assert_allclose(y, expected, rtol=0, atol=1e-11)
        seen.append(side)

    for block in encoder.blocks:
        block.register_forward_hook(compare)
    encoder(image(batch, 3, size, size).double())
    assert len(seen) == 2


def test_decoder_attention_with_expert_computes_w_plus_ba():
    attention = TokenAttention(16, 8, 2, rank=3).double()
    randomise(attention)
    q, k, v = (torch.randn(1, n, 16, dtype=torch.float64) for n in (3, 5, 5))
    p = {key: value.numpy() for key, value in attention.state_dict().items()}
    w_q = p["q_proj.weight"] + p["expert.linear_b_q.weight"] @ p["expert.linear_a_q.weight"]
    w_v = p["v_proj.weight"] + p["expert.linear_b_v.weight"] @ p["expert.linear_a_v.weight"]
    queries = q[0].numpy() @ w_q.T + p["q_proj.bias"]
    keys = k[0].numpy() @ p["k_proj.weight"].T + p["k_proj.bias"]
    values = v[0].numpy() @ w_v.T + p["v_proj.bias"]
    joined = np.zeros((3, 8))
    for head in (slice(0, 4), slice(4, 8)):
        for i in range(3):
            weights = np.exp(keys[:, head] @ queries[i, head] / 2)
            joined[i, head] = weights / weights.sum() @ values[:, head]
    expected = joined @ p["out_proj.weight"].T + p["out_proj.bias"]
    np.testing.assert_allclose(attention(q, k, v)[0].detach().numpy(), expected, rtol=0, atol=1e-12)


def same_base(net: Segmenter, **settings) -> Segmenter:
    """Another network of the same family with the weights of `net` wherever their keys agree."""
    other = (tiny_sam2 if net.sam2 else tiny)(**settings)
    state = net.state_dict()
    other.load_state_dict({key: state.get(key, value) for key, value in other.state_dict().items()})
    return other.eval()


def reset_experts(net: Segmenter) -> None:
    """Set B to zero, as in a new expert."""
    for name, parameter in net.named_parameters():
        if ".linear_b_" in name:
            nn.init.zeros_(parameter)


@pytest.mark.parametrize("build", [tiny, tiny_sam2])
@pytest.mark.parametrize("experts", [("task",), LEVELS])
@torch.no_grad()
def test_a_new_expert_changes_no_bit(experts, build):
    net = build(experts=experts, decoder_rank=2).eval()
    reset_experts(net)
    sam = same_base(net, experts=())
    assert torch.equal(net(image(2, 1, 40, 50)), sam(image(2, 1, 40, 50)))


@pytest.mark.parametrize("name", FUSED)
@torch.no_grad()
def test_new_experts_are_fused_into_zero_with_any_weights_of_hl_attn(name):
    net = tiny(**SYSTEMS[name]).eval()
    reset_experts(net)
    sam = same_base(net, experts=())
    torch.testing.assert_close(net(image(2, 1, 40, 50)), sam(image(2, 1, 40, 50)), rtol=0, atol=1e-5)
    net, sam = net.double(), sam.double()
    x = image(2, 1, 40, 50).double()
    torch.testing.assert_close(net(x), sam(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", FUSED)
@torch.no_grad()
def test_new_hl_attn_is_the_highest_expert_alone(name):
    settings = SYSTEMS[name]
    net = tiny(**settings).eval()
    projections = [p for key, p in net.named_parameters() if ".hl_attn." in key and key.endswith("proj.weight")]
    assert len(projections) == 2 * (len(settings["experts"]) - 1)
    for projection in projections:
        nn.init.zeros_(projection)
    order = settings.get("fusion_order", ("pixel", "patch", "image"))
    highest = next(level for level in reversed(order) if level in settings["experts"])
    alone = same_base(net, **(settings | {"experts": (highest,), "fusion": None}))
    x = image(2, 1, 64, 64).double()
    torch.testing.assert_close(net.double()(x), alone.double()(x), rtol=0, atol=1e-12)


def test_initial_values():
    """A uniform in +-1/sqrt(width), B and HL-Attn's output zero, as in SAMed and as HL-Attn documents."""
    net = build_segmenter(TINY, 64, experts=LEVELS, fusion="block", decoder_rank=2)
    for name, value in net.state_dict().items():
        if ".linear_a_" in name:
            bound = value.shape[1] ** -0.5
            assert 0.5 * bound < value.abs().max() <= bound
        if ".linear_b_" in name or (".hl_attn." in name and name.endswith("proj.weight")):
            assert not value.any()


@pytest.mark.parametrize("settings", [{"experts": ("task",)}, {"experts": LEVELS, "rank": 2}])
@torch.no_grad()
def test_merged_experts_compute_the_same(settings):
    net = tiny(**settings).eval()
    x = image(2, 1, 50, 70)
    before = net(x)
    net.image_encoder.merge_experts()
    torch.testing.assert_close(net(x), before, rtol=0, atol=1e-5)
    assert net.image_encoder.experts == ()
    assert list(net.state_dict()) == list(tiny(experts=()).state_dict())


@pytest.mark.parametrize("fusion", ["attention", "block"])
def test_fused_experts_are_not_merged(fusion):
    net = tiny(experts=LEVELS, fusion=fusion)
    keys = list(net.state_dict())
    with refused("HL-Attn", "cannot be merged"):
        net.image_encoder.merge_experts()
    assert list(net.state_dict()) == keys


@pytest.mark.parametrize("fusion", [None, "attention", "block"])
def test_gradient_checkpointing_changes_neither_values_nor_gradients(fusion):
    results = []
    for checkpointing in (False, True):
        net = tiny(experts=LEVELS, fusion=fusion, gradient_checkpointing=checkpointing, train="all").double()
        logits = net(image(2, 1, 64, 64).double())
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in net.parameters() if p.requires_grad)])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-12, atol=1e-12)
