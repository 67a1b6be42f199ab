"""Build SAM, SAMed, SAMora, H-SAM or H-SAMora, on SAM or SAM 2, from the same parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

from samora_monai.errors import InputError
from samora_monai.networks.config import SegmenterConfig
from samora_monai.networks.hsam.hierarchical_decoder import HierarchicalDecoder
from samora_monai.networks.image_encoder import ImageEncoder
from samora_monai.networks.mask_decoder import MaskDecoder
from samora_monai.networks.prompt_encoder import PromptEncoder
from samora_monai.networks.sam2.hiera import HieraEncoder
from samora_monai.networks.sam2.mask_decoder import Sam2MaskDecoder
from samora_monai.networks.segmenter import Segmenter
from samora_monai.networks.trainable import set_trainable
from samora_monai.settings import flag

PIXEL_MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)  # of SAM and SAM 2, for images in [0, 1]
PIXEL_STD = (58.395 / 255, 57.12 / 255, 57.375 / 255)


def build_segmenter(
    encoder: str | dict[str, Any] | SegmenterConfig = "vit_b",
    image_size: int | None = None,
    in_channels: int | None = None,
    num_classes: int | None = None,
    *,
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
        encoder: encoder of the network, or a `SegmenterConfig`, some of whose fields the next arguments replace.
        image_size, in_channels, num_classes, options: other fields of `SegmenterConfig`; None keeps a field as it is.
        train: which parameters train, see `set_trainable`.
        fusion_start: `"zero"` or `"random"`, see `HLAttn`.
        pixel_mean, pixel_std: statistics of images in [0, 1], stored with the weights; 0 and 1 for SAMed's files.
        embedding_noise: see `HierarchicalDecoder`.
        gradient_checkpointing: see `Encoder`.

    Raises:
        InputError: an option does not exist, is out of range or contradicts another.
    """
    known = [field.name for field in fields(SegmenterConfig)]
    sizes = {"image_size": image_size, "in_channels": in_channels, "num_classes": num_classes}
    options |= {name: size for name, size in sizes.items() if size is not None}
    if unknown := [name for name in options if name not in known]:
        raise InputError(f"unknown option {unknown[0]!r} of a network; expected one of {', '.join(known)}")
    config = (
        replace(encoder, **options) if isinstance(encoder, SegmenterConfig) else SegmenterConfig(encoder, **options)
    )
    if embedding_noise < 0:
        raise InputError(f"embedding_noise is {embedding_noise} but must be at least 0")
    if len(pixel_mean) != 3 or len(pixel_std) != 3 or max(*pixel_mean, *pixel_std) > 1 or min(pixel_std) <= 0:
        raise InputError(
            "pixel_mean and pixel_std must be three values each, for images in [0, 1]; divide those for 0-255 by 255"
        )
    if fusion_start not in ("zero", "random"):
        raise InputError(f"unknown fusion_start {fusion_start!r}; choose 'zero' or 'random'")

    dim, size, classes = config.encoder_sizes.get("out_chans", 256), config.image_size, config.num_classes
    hierarchical, sam2 = config.decoder == "hierarchical", config.is_sam2
    image_encoder = (HieraEncoder if sam2 else partial(ImageEncoder, size))(
        experts=config.experts,
        rank=config.rank,
        fusion=config.fusion,
        gradient_checkpointing=flag(gradient_checkpointing, "gradient_checkpointing"),
        fusion_blocks=config.fused_blocks,
        order=config.levels,
        width=config.fusion_width,
        norm=config.fusion_norm,
        start=fusion_start,
        **config.encoder_sizes,
    )
    points = 11 if hierarchical and not sam2 else 4  # as in the files
    prompt_encoder = PromptEncoder(dim, size // config.token_size, size, points, corners_are_points=sam2)
    decoder = Sam2MaskDecoder if sam2 else MaskDecoder
    mask_decoder = decoder(dim, classes, config.decoder_rank, self_attention_first=not hierarchical)
    second = None
    if hierarchical:
        second = HierarchicalDecoder(dim, classes, embedding_noise, config.class_balanced_attention)
    parts = (image_encoder, prompt_encoder, mask_decoder, second)
    net = Segmenter(*parts, size, config.in_channels, pixel_mean, pixel_std, config.stage, sam2)
    set_trainable(net, train)
    return net
