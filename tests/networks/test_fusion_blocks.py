"""HL-Attn in some blocks only, its LayerNorm on queries and keys, and the graph that frozen blocks do not keep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from samora_monai.checkpoints import load_adapter, load_expert, save_adapter, save_expert
from samora_monai.networks import LEVELS, Segmenter, SegmenterConfig, build_segmenter
from samora_monai.networks.hl_attn import HLAttn
from samora_monai.networks.windows import Windows
from tests.networks import literal
from tests.networks.test_experts import reset_experts, same_base
from tests.tiny import HIERA, IDENTITY, TINY, image, randomise, refused, tiny, tiny_sam2

SAMORA: dict[str, Any] = {"experts": LEVELS, "fusion": "attention"}
DEEP = TINY | {"depth": 4, "global_attn_indexes": (1, 3)}


@pytest.mark.parametrize(
    ("encoder", "blocks", "expected"),
    [
        ("vit_b", "all", range(12)),
        ("vit_b", "global", (2, 5, 8, 11)),
        ("vit_b", "last_third", range(8, 12)),
        ("vit_h", "last_third", range(21, 32)),
        ("sam2_tiny", "global", (5, 7, 9)),
        ("sam2_tiny", "last_third", range(8, 12)),
        ("tiny", [0, 4], (0, 4)),
        ({"embed_dim": 32, "num_heads": 2}, "global", (2, 5, 8, 11)),
    ],
)
def test_names_of_blocks(encoder, blocks, expected):
    config = SegmenterConfig(encoder, **SAMORA, fusion_blocks=blocks)
    assert config.fused_blocks == tuple(expected)
    assert SegmenterConfig(encoder, fusion_blocks=blocks).fused_blocks == ()  # no fusion


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ("local", ("fusion_blocks is 'local'", "all, global, last_third or a list")),
        ([], ("fusion_blocks is ()",)),
        ([-1], ("fusion_blocks is (-1,)",)),
        ([1, 2], ("fusion_blocks has 2", "0 to 1")),
    ],
)
def test_other_blocks_are_refused(blocks, words):
    with refused(*words):
        build_segmenter(TINY, 64, **SAMORA, fusion_blocks=blocks)


def test_a_choice_without_any_block_is_refused():
    with refused("fusion_blocks is 'global' but the encoder has no such block"):
        build_segmenter(TINY | {"global_attn_indexes": ()}, 64, **SAMORA, fusion_blocks="global")


@pytest.mark.parametrize("fusion", ["attention", "block"])
@torch.no_grad()
def test_the_highest_expert_acts_alone_between_the_fused_blocks(fusion):
    settings = SAMORA | {"fusion": fusion}
    encoder = tiny(64, 3, **settings, **IDENTITY, fusion_blocks=[1]).image_encoder.double()
    pairs: list[tuple[nn.Module, np.ndarray, np.ndarray]] = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda m, x, y: pairs.append((m, x[0][0].numpy(), y[0].numpy())))
    encoder(image(1, 3, 64, 64).double())
    order = ("pixel", "patch", "image")
    for (block, x, y), side, names, own in zip(pairs, (3, 4), (("image",), LEVELS), (None, fusion), strict=True):
        p = {key: value.numpy() for key, value in block.state_dict().items()}
        assert (block.hl_attn is None) == (own is None) and tuple(block.attn.experts) == names
        expected = literal.block(p, x, side, TINY["num_heads"], names, own, order)
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("build", "encoder"), [(tiny, DEEP), (tiny_sam2, HIERA)])
@torch.no_grad()
def test_new_hl_attn_is_the_highest_expert_alone(build, encoder):
    net = build(**SAMORA, encoder=encoder, fusion_blocks="global").double().eval()
    fused = [i for i, block in enumerate(net.image_encoder.encoder_blocks()) if block.hl_attn is not None]
    assert fused == ([1, 3] if build is tiny else [5])
    for name, parameter in net.named_parameters():
        if ".hl_attn." in name and name.endswith("proj.weight"):
            nn.init.zeros_(parameter)
    alone = same_base(net, encoder=encoder, experts=("image",)).double()
    x = image(1, 1, 64, 64).double()
    torch.testing.assert_close(net(x), alone(x), rtol=0, atol=1e-12)
    assert f"of block{'s 1, 3' if build is tiny else ' 5'};" in net.describe()


def test_every_parameter_that_trains_gets_a_gradient():
    """DistributedDataParallel waits for each: the lower experts exist in the fused blocks only."""
    net = tiny(**SAMORA, fusion_blocks=[1], train="adapters+experts").train()
    net(image(2, 1, 64, 64)).square().mean().backward()
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []
    names = {n.split(".experts.")[1].split(".")[0] for n, _ in net.named_parameters() if ".blocks.0.attn.experts." in n}
    assert names == {"image"}


def test_expert_files_fill_the_fused_blocks(tmp_path):
    """Files hold every block; what has no place is reported. Adapters of another choice are refused."""
    net = tiny(**SAMORA, fusion_blocks=[1])
    for level in ("image", "patch"):
        source = same_base(net, experts=(level,), train="experts")
        randomise(source.image_encoder.blocks[0].attn.experts, 7)
        save_expert(source, tmp_path / f"{level}.pt", level)
        report = load_expert(net, tmp_path / f"{level}.pt", level)
        assert (len(report.copied), len(report.dropped)) == ((8, 0) if level == "image" else (4, 4))
        own = net.image_encoder.blocks[1].attn.experts[level].linear_b_v.weight
        assert torch.equal(own, source.image_encoder.blocks[1].attn.experts[level].linear_b_v.weight)
    save_adapter(net, tmp_path / "adapter.pt")
    with refused("'adapter.pt'", "other settings"):
        load_adapter(same_base(net, **SAMORA), tmp_path / "adapter.pt")
    with refused("fusion_norm False but the network has True"):
        load_adapter(same_base(net, **SAMORA, fusion_blocks=[1], fusion_norm=True), tmp_path / "adapter.pt")


@torch.no_grad()
def test_the_norm_is_on_queries_and_keys_alone():
    raw, normalised = (HLAttn(16, 2, ("low", "high"), start="random", norm=norm).double() for norm in (False, True))
    normalised.load_state_dict(raw.state_dict())
    windows = Windows(0, (1, 3, 3))
    low, high = (torch.randn(9, 16, dtype=torch.float64) for _ in range(2))
    p = {f"hl_attn.{key}": value.numpy() for key, value in raw.state_dict().items()}

    def n(t: torch.Tensor) -> np.ndarray:
        return ((t - t.mean(-1, keepdim=True)) / (t.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()).numpy()

    w_k, w_v = np.split(p["hl_attn.cross.high.kv.weight"], 2)
    parts = [n(high) @ p["hl_attn.cross.high.q.weight"].T, n(low) @ w_k.T, low.numpy() @ w_v.T]
    zero = np.zeros(16)
    attended = literal.attend(*(t.reshape(3, 3, 16) for t in parts), (zero, zero, zero), 3, 2, [])
    expected = high.numpy() + attended.reshape(9, 16) @ p["hl_attn.cross.high.proj.weight"].T
    np.testing.assert_allclose(normalised({"low": low, "high": high}, windows), expected, rtol=0, atol=1e-12)
    # a scale of the contributions changes the result by as much
    scaled = normalised({"low": 50 * low, "high": 50 * high}, windows)
    torch.testing.assert_close(scaled, 50 * torch.from_numpy(expected), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("fusion", ["attention", "block"])
@torch.no_grad()
def test_zero_experts_are_fused_into_zero_under_the_norm(fusion):
    net = tiny(experts=LEVELS, fusion=fusion, fusion_norm=True).double().eval()
    reset_experts(net)
    x = image(1, 1, 64, 64).double()
    torch.testing.assert_close(net(x), same_base(net, experts=()).double()(x), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_both_settings_can_be_exported():
    settings = SAMORA | {"fusion_norm": True, "fusion_blocks": [1]}
    net = tiny(**settings, encoder={"window_size": 14}).eval()
    x = image(1, 1, 64, 64)
    with torch.no_grad():
        program = torch.export.export(net, (x,))
        torch.testing.assert_close(program.module()(x), net(x), rtol=0, atol=1e-5)


@contextmanager
def saved_bytes() -> Iterator[list[int]]:
    """The bytes of each tensor that autograd keeps for the backward pass; parameters and views count too."""
    found: list[int] = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        found.append(t.nbytes)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        yield found


@contextmanager
def prefix_without_gradients(net: Segmenter, count: int) -> Iterator[None]:
    """Run the embedding and the first `count` blocks under `no_grad`."""
    encoder, blocks = net.image_encoder, net.image_encoder.encoder_blocks()[:count]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "embed", torch.no_grad()(encoder.embed))
        for block in blocks:
            patch.setattr(block, "forward", torch.no_grad()(block.forward))
        yield


def gradients(net: Segmenter, x: torch.Tensor, frozen: int) -> tuple[list[int], dict[str, torch.Tensor]]:
    """What a training step keeps for its backward pass, and its gradients, with `frozen` blocks under `no_grad`."""
    net.zero_grad()
    with prefix_without_gradients(net, frozen), saved_bytes() as kept:
        loss = net(x).square().mean()
    loss.backward()
    return kept, {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("build", [tiny, tiny_sam2])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("case", ["decoder", "fusion", "experts"])
def test_blocks_before_the_first_trained_parameter_keep_no_graph(build, checkpointing, case):
    """As under `no_grad`, with the same gradients: autograd records nothing where no input needs a gradient."""
    encoder, depth = (DEEP, 4) if build is tiny else (HIERA, sum(HIERA["stages"]))
    frozen = {"decoder": depth, "fusion": depth - 2, "experts": 2}[case]
    settings = SAMORA | {"fusion_blocks": [frozen]} if case == "fusion" else {"experts": ("image",)}
    train = "decoder" if case == "decoder" else "adapters"
    net = build(**settings, encoder=encoder, train=train, gradient_checkpointing=checkpointing).train()
    blocks = net.image_encoder.encoder_blocks()
    if case == "experts":
        for block in blocks[:frozen]:
            block.requires_grad_(False)
    x = image(1, 1, 64, 64)
    kept, found = gradients(net, x, 0)
    without, expected = gradients(net, x, frozen)
    assert kept == without and sum(kept) > 0
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    tokens = net.encode(x, range(depth))
    assert [t.requires_grad for t in tokens] == [i >= frozen for i in range(depth)]
