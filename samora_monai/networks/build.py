"""Build SAM, SAMed, SAMora, H-SAM or H-SAMora from the same parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from samora_monai.errors import InputError
from samora_monai.networks.config import SegmenterConfig
from samora_monai.networks.hierarchical_decoder import HierarchicalDecoder
from samora_monai.networks.image_encoder import ImageEncoder
from samora_monai.networks.mask_decoder import MaskDecoder
from samora_monai.networks.prompt_encoder import PromptEncoder
from samora_monai.networks.segmenter import Segmenter
from samora_monai.networks.trainable import set_trainable
from samora_monai.settings import flag

PIXEL_MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)  # SAM's statistics, for images in [0, 1]
PIXEL_STD = (58.395 / 255, 57.12 / 255, 57.375 / 255)
FUSION_STARTS = ("zero", "random")


def build_segmenter(
    encoder: str | dict[str, Any] | SegmenterConfig = "vit_b",
    *sizes: int,
    train: str = "adapters",
    fusion_start: str = "zero",
    pixel_mean: Sequence[float] = PIXEL_MEAN,
    pixel_std: Sequence[float] = PIXEL_STD,
    embedding_noise: float = 0.2,
    gradient_checkpointing: bool | str = False,
    **options: Any,
) -> Segmenter:
    """Build a network with random weights.

    Args:
        encoder: encoder of the network, or a `SegmenterConfig`.
        sizes, options: the other fields of `SegmenterConfig`, `image_size` first, by position or by name; they replace
            those of a given `SegmenterConfig`.
        train: which parameters train, see `set_trainable`.
        fusion_start: initial output projections of HL-Attn: `"zero"`, so that the network computes SAM with the expert
            at the top of the fusion order, or `"random"`.
        pixel_mean, pixel_std: statistics of images in [0, 1], stored with the weights; SAM's by default, 0 and 1 for
            SAMed's files.
        embedding_noise: noise of the hierarchical decoder in training, see `HierarchicalDecoder`.
        gradient_checkpointing: recompute the encoder's blocks in the backward pass, which saves memory.

    Raises:
        InputError: an option does not exist, is out of range or contradicts another.
    """
    known = [field.name for field in fields(SegmenterConfig)]
    options |= zip(known[1:], sizes, strict=False)
    if unknown := [name for name in options if name not in known]:
        raise InputError(f"unknown option {unknown[0]!r} of a network; expected one of {', '.join(known)}")
    if isinstance(encoder, SegmenterConfig):
        config = replace(encoder, **options)
    else:
        config = SegmenterConfig(encoder, **options)
    if embedding_noise < 0:
        raise InputError(f"embedding_noise is {embedding_noise} but must be at least 0")
    if len(pixel_mean) != 3 or len(pixel_std) != 3 or max(*pixel_mean, *pixel_std) > 1 or min(pixel_std) <= 0:
        raise InputError(
            "pixel_mean and pixel_std must be three values each, for images in [0, 1]; divide those for 0-255 by 255"
        )
    if fusion_start not in FUSION_STARTS:
        raise InputError(f"unknown fusion_start {fusion_start!r}; choose 'zero' or 'random'")

    dim, hierarchical = config.encoder_sizes.get("out_chans", 256), config.decoder == "hierarchical"
    net = Segmenter(
        ImageEncoder(
            image_size=config.image_size,
            experts=config.experts,
            rank=config.rank,
            fusion=config.fusion,
            fusion_order=config.levels,
            fusion_width=config.fusion_width,
            fusion_start=fusion_start,
            gradient_checkpointing=flag(gradient_checkpointing, "gradient_checkpointing"),
            **config.encoder_sizes,
        ),
        PromptEncoder(
            dim,
            config.image_size // config.patch_size,
            config.image_size,
            num_point_embeddings=11 if hierarchical else 4,  # H-SAM's files have 11
        ),
        MaskDecoder(dim, config.num_classes, config.decoder_rank, self_attention_first=not hierarchical),
        config.image_size,
        config.in_channels,
        pixel_mean,
        pixel_std,
        HierarchicalDecoder(dim, config.num_classes, embedding_noise, config.class_balanced_attention)
        if hierarchical
        else None,
        config.stage,
    )
    set_trainable(net, train)
    return net
