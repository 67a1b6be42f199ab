"""In SAM 2's networks only the named parameters train, and each of them gets a gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from samora_monai.networks import LEVELS
from tests.networks.test_trainable import LOW_RANK, affine
from tests.networks.test_trainable import decoder_experts as sam_decoder_experts
from tests.networks.test_trainable import heads as sam_heads
from tests.networks.test_trainable import transformer as sam_transformer
from tests.tiny import image, tiny_sam2

BLOCKS = [f"image_encoder.trunk.blocks.{i}" for i in range(9)]
POOLING = (2, 4, 7)


def as_sam2(names: list[str]) -> list[str]:
    """SAM's names of the decoder as SAM 2 writes them."""
    renamed = [f"sam_{name}".replace("mlp.lin1", "mlp.layers.0").replace("mlp.lin2", "mlp.layers.1") for name in names]
    return [name.replace("sam_sam_", "sam_") for name in renamed]


def heads() -> list[str]:
    """The decoder without its transformer and the heads of the predicted IoU and of the object's visibility."""
    skips = affine("sam_mask_decoder.conv_s0", "sam_mask_decoder.conv_s1")
    return [*as_sam2(sam_heads(3)), "sam_mask_decoder.obj_score_token.weight", *skips]


def encoder_experts(*names: str) -> list[str]:
    return [f"{block}.attn.experts.{name}.{leaf}" for block in BLOCKS for name in names for leaf in LOW_RANK]


def hl_attn(*names: str) -> list[str]:
    leaves = ("q.weight", "kv.weight", "proj.weight")
    return [f"{block}.hl_attn.cross.{name}.{leaf}" for block in BLOCKS for name in names for leaf in leaves]


def base() -> list[str]:
    trunk = "image_encoder.trunk"
    names = ["no_mem_embed", f"{trunk}.pos_embed", f"{trunk}.pos_embed_window", *affine(f"{trunk}.patch_embed.proj")]
    for block in BLOCKS:
        parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.layers.0", "mlp.layers.1")
        names += affine(*(f"{block}.{part}" for part in parts))
    names += affine(*(f"{trunk}.blocks.{i}.proj" for i in POOLING))
    return names + affine(*(f"image_encoder.neck.convs.{i}.conv" for i in range(4)))


DECODER = heads() + as_sam2(sam_transformer())
DECODER_EXPERTS = as_sam2(sam_decoder_experts())
SAMORA: dict[str, Any] = {"experts": LEVELS, "fusion": "attention"}
SYSTEMS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "SAM 2": ({"experts": ()}, DECODER),
    "SAMed": ({}, DECODER + encoder_experts("task")),
    "SAMed_s": ({"decoder_rank": 2}, heads() + DECODER_EXPERTS + encoder_experts("task")),
    "SAMora attention": (SAMORA, DECODER + hl_attn("patch", "image")),
    "SAMora block": (SAMORA | {"fusion": "block"}, DECODER + hl_attn("patch", "image")),
    "SAMora and its experts": (
        SAMORA | {"train": "adapters+experts"},
        DECODER + encoder_experts(*LEVELS) + hl_attn("patch", "image"),
    ),
    "three experts without fusion": ({"experts": LEVELS}, DECODER + encoder_experts(*LEVELS)),
    "an expert alone": ({"experts": ("image",), "train": "experts"}, encoder_experts("image")),
    "decoder": ({"train": "decoder"}, DECODER),
    "decoder of SAMed_s": ({"decoder_rank": 2, "train": "decoder"}, heads() + DECODER_EXPERTS),
    "all of SAM 2": ({"experts": (), "train": "all"}, base() + DECODER),
    "all of SAMora": (
        SAMORA | {"fusion": "block", "train": "all"},
        base() + DECODER + encoder_experts(*LEVELS) + hl_attn("patch", "image"),
    ),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_exactly_these_train_and_every_one_gets_a_gradient(name):
    """DistributedDataParallel waits for the gradient of every parameter that trains."""
    settings, expected = SYSTEMS[name]
    net = tiny_sam2(num_classes=3, **settings).train()
    assert sorted(n for n, p in net.named_parameters() if p.requires_grad) == sorted(expected)
    net(image(2, 1, 64, 64)).square().mean().backward()
    assert sorted(n for n, p in net.named_parameters() if p.grad is not None) == sorted(expected)
    # the bias of a key projection moves every logit of a row alike: its gradient is zero up to rounding
    silent = [n for n, p in net.named_parameters() if p.grad is not None and not p.grad.any() and "k_proj" not in n]
    assert silent == []


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("settings", [{}, {"train": "decoder"}, SAMORA, SAMORA | {"train": "all"}])
def test_what_trains_with_the_hierarchical_decoder(settings, gate):
    """All of both decoders but the quality heads, and what trains with SAM 2's decoder."""
    net = tiny_sam2(decoder="hierarchical", class_balanced_attention=gate, **settings).train()
    plain = {name for name, p in tiny_sam2(**settings).named_parameters() if p.requires_grad}
    second = {n for n, _ in net.named_parameters() if n.startswith("mask_decoder2.")}
    quality = {n for n in second if ".iou_prediction_head." in n}
    assert len(quality) == 6
    assert any(".class_attention." in name for name in second) == gate
    trains = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trains == plain | second - quality
    label = (image(2, 1, 64, 64, seed=1) * 3).long()
    low, high = net(image(2, 1, 64, 64), label)
    assert (low.shape, high.shape) == ((2, 3, 16, 16), (2, 3, 64, 64))
    (low.square().mean() + high.square().mean()).backward()
    assert {name for name, p in net.named_parameters() if p.grad is not None} == trains
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


@torch.no_grad()
def test_the_hierarchical_decoder_averages_both_stages():
    net = tiny_sam2(decoder="hierarchical").eval()
    x = image(2, 1, 40, 100)
    stages = [torch.nn.functional.interpolate(s, (40, 100), mode="bilinear") for s in net.stage_logits(x)]
    torch.testing.assert_close(net(x), (stages[0] + stages[1]) / 2, rtol=0, atol=1e-6)
    net.stage = 2
    assert torch.equal(net(x), stages[1])


@torch.no_grad()
def test_the_second_decoder_adds_the_finer_maps_that_the_first_has_projected():
    net = tiny_sam2(decoder="hierarchical").eval().double()
    embedding, skips = net._features(net.preprocess(image(2, 1, 64, 64).double()))
    pe = net.prompt_encoder.get_dense_pe()
    sparse, dense = net.prompt_encoder()
    first = net.mask_decoder.decode(embedding, pe, sparse, dense, skips)
    expected = (net.mask_decoder.conv_s1(skips[1]), net.mask_decoder.conv_s0(skips[0]))
    assert all(torch.equal(got, value) for got, value in zip(first.skips, expected, strict=True))

    def second(maps):
        return net.mask_decoder2.predict_masks(embedding, pe, dense, first._replace(skips=maps), None)[0]

    torch.testing.assert_close(second(()), second(tuple(map(torch.zeros_like, first.skips))), rtol=0, atol=1e-12)
    for changed in range(2):  # each of both maps matters
        maps = [torch.zeros_like(m) if i == changed else m for i, m in enumerate(first.skips)]
        assert (second(tuple(maps)) - second(first.skips)).abs().max() > 1e-3
    torch.testing.assert_close(net.stage_logits(image(2, 1, 64, 64).double())[1], second(first.skips), rtol=0, atol=0)
