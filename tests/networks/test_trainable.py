"""Only the named parameters train, and each of them gets a gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from samora_monai.networks import LEVELS, build_segmenter, set_trainable
from tests.tiny import TINY, image, refused, tiny

TRANSFORMER = "mask_decoder.transformer"
CROSS = ("cross_attn_token_to_image", "cross_attn_image_to_token")
ATTENTIONS = [f"{TRANSFORMER}.layers.{i}.{m}" for i in range(2) for m in ("self_attn", *CROSS)]
ATTENTIONS.append(f"{TRANSFORMER}.final_attn_token_to_image")
LOW_RANK = ("linear_a_q.weight", "linear_b_q.weight", "linear_a_v.weight", "linear_b_v.weight")


def affine(*modules: str) -> list[str]:
    return [f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")]


def heads(classes: int) -> list[str]:
    """The decoder without its transformer and its quality head, and the embedding of "no mask"."""
    return [
        "prompt_encoder.no_mask_embed.weight",
        "mask_decoder.iou_token.weight",
        "mask_decoder.mask_tokens.weight",
        *affine(*(f"mask_decoder.output_upscaling.{i}" for i in (0, 1, 3))),
        *affine(*(f"mask_decoder.output_hypernetworks_mlps.{c}.layers.{i}" for c in range(classes) for i in range(3))),
    ]


def transformer() -> list[str]:
    modules = [f"{attention}.{part}_proj" for attention in ATTENTIONS for part in ("q", "k", "v", "out")]
    for i in range(2):
        parts = ("norm1", "norm2", "norm3", "norm4", "mlp.lin1", "mlp.lin2")
        modules += [f"{TRANSFORMER}.layers.{i}.{part}" for part in parts]
    return affine(*modules, f"{TRANSFORMER}.norm_final_attn")


def decoder_experts() -> list[str]:
    return [f"{attention}.expert.{leaf}" for attention in ATTENTIONS for leaf in LOW_RANK]


def encoder_experts(*names: str) -> list[str]:
    return [
        f"image_encoder.blocks.{i}.attn.experts.{name}.{leaf}" for i in range(2) for name in names for leaf in LOW_RANK
    ]


def hl_attn(*names: str) -> list[str]:
    leaves = ("q.weight", "kv.weight", "proj.weight")
    return [
        f"image_encoder.blocks.{i}.hl_attn.cross.{name}.{leaf}" for i in range(2) for name in names for leaf in leaves
    ]


def base() -> list[str]:
    names = ["image_encoder.pos_embed", *affine("image_encoder.patch_embed.proj")]
    for i in range(2):
        block = f"image_encoder.blocks.{i}"
        names += [f"{block}.attn.rel_pos_h", f"{block}.attn.rel_pos_w"]
        names += affine(*(f"{block}.{m}" for m in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.lin1", "mlp.lin2")))
    neck = ["image_encoder.neck.0.weight", "image_encoder.neck.2.weight"]
    return names + neck + affine("image_encoder.neck.1", "image_encoder.neck.3")


DECODER = heads(3) + transformer()
SYSTEMS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "SAMed": ({"experts": ("task",)}, DECODER + encoder_experts("task")),
    "SAMed_s": (
        {"experts": ("task",), "decoder_rank": 2},
        heads(3) + decoder_experts() + encoder_experts("task"),
    ),
    "SAMora attention": ({"experts": LEVELS, "fusion": "attention"}, DECODER + hl_attn("patch", "image")),
    "SAMora block": ({"experts": LEVELS, "fusion": "block"}, DECODER + hl_attn("patch", "image")),
    "SAMora, narrow, two levels, experts in the decoder": (
        {"experts": ("image", "pixel"), "fusion": "attention", "fusion_width": 16, "decoder_rank": 1},
        heads(3) + decoder_experts() + hl_attn("image"),
    ),
    "three experts without fusion": ({"experts": LEVELS}, DECODER + encoder_experts(*LEVELS)),
    "SAM": ({"experts": ()}, DECODER),
    "decoder of SAMed": ({"experts": ("task",), "train": "decoder"}, DECODER),
    "decoder of SAMed_s": ({"experts": ("task",), "decoder_rank": 2, "train": "decoder"}, heads(3) + decoder_experts()),
    "decoder of SAMora": ({"experts": LEVELS, "fusion": "block", "train": "decoder"}, DECODER),
    "all of SAM": ({"experts": (), "train": "all"}, base() + DECODER),
    "all of SAMed": ({"experts": ("task",), "train": "all"}, base() + DECODER + encoder_experts("task")),
    "all of SAMora": (
        {"experts": LEVELS, "fusion": "attention", "train": "all"},
        base() + DECODER + encoder_experts(*LEVELS) + hl_attn("patch", "image"),
    ),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_exactly_these_train_and_every_one_gets_a_gradient(name):
    """DistributedDataParallel waits for the gradient of every parameter that trains."""
    settings, expected = SYSTEMS[name]
    net = tiny(num_classes=3, **settings).train()
    assert sorted(n for n, p in net.named_parameters() if p.requires_grad) == sorted(expected)
    net(image(2, 1, 64, 64)).square().mean().backward()
    assert sorted(n for n, p in net.named_parameters() if p.grad is not None) == sorted(expected)
    # the bias of a key projection moves every logit of a row alike: its gradient is zero up to rounding
    silent = [n for n, p in net.named_parameters() if p.grad is not None and not p.grad.any() and "k_proj" not in n]
    assert silent == []


@pytest.mark.parametrize("fusion", ["attention", "block"])
def test_gradients_of_the_first_step_of_fine_tuning(fusion):
    """W_o is zero at first: only the W_o of the highest level moves, the others follow; none is without a gradient."""
    net = build_segmenter(TINY, 64, experts=LEVELS, fusion=fusion).train()
    for name, parameter in net.named_parameters():
        if ".experts." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    net(image(1, 1, 64, 64)).square().mean().backward()
    for name, parameter in net.named_parameters():
        if ".hl_attn." in name:
            assert parameter.grad is not None
            assert bool(parameter.grad.any()) == name.endswith("cross.image.proj.weight"), name


def test_a_new_expert_learns_b_first():
    """B is zero at first: A gets a gradient that is zero."""
    net = build_segmenter(TINY, 64).train()
    net(image(1, 1, 64, 64)).square().mean().backward()
    for name, parameter in net.named_parameters():
        if ".experts." in name:
            assert parameter.grad is not None
            assert bool(parameter.grad.any()) == ("linear_b" in name), name


def test_set_trainable_returns_the_names_and_can_be_called_again():
    net = tiny(experts=("task",), train="all")
    assert set_trainable(net, "decoder") == [n for n, p in net.named_parameters() if p.requires_grad]
    assert sorted(set_trainable(net)) == sorted(DECODER + encoder_experts("task"))


def test_unknown_choice_is_refused():
    with refused("'encoder'", "'adapters', 'experts', 'decoder' or 'all'"):
        tiny(train="encoder")


@pytest.mark.parametrize(
    ("encoder", "decoder_rank", "in_file"),
    [("vit_b", 0, 4_913_877), ("vit_b", 4, 1_646_165), ("vit_h", 0, 5_421_781)],
)
def test_as_many_parameters_as_samed_trains(encoder, decoder_rank, in_file):
    """As many as SAMed's files hold for 9 classes, without those that are never used or not trained."""
    with torch.device("meta"):
        net = build_segmenter(encoder, 512, num_classes=9, decoder_rank=decoder_rank)
    quality_head, other_prompts, encoding = 133_897, 5_964, 256
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert trained == in_file - quality_head - other_prompts - encoding
