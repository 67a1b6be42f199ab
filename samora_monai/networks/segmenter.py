"""The segmentation network: SAM's encoder and decoder around any image size, prompt-free or with prompts.

experts          fusion        what it is
()               None          SAM itself (num_classes=4 are SAM's four mask tokens; see `predict_masks`)
("task",)        None          SAMed (https://arxiv.org/abs/2304.13785)
LEVELS           "attention"   SAMora (ICCV 2025), HL-Attn on attention outputs
                 or "block"    HL-Attn on block outputs, the paper's equation

The decoder "hierarchical" makes H-SAM (https://arxiv.org/abs/2403.18271) of SAMed and H-SAMora of SAMora.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.utils import convert_to_tensor
from torch import Tensor

from samora_monai.errors import InputError
from samora_monai.networks.experts import LEVELS
from samora_monai.networks.hierarchical_decoder import HierarchicalDecoder
from samora_monai.networks.image_encoder import ImageEncoder
from samora_monai.networks.mask_decoder import MaskDecoder
from samora_monai.networks.prompt_encoder import PromptEncoder
from samora_monai.networks.strict import StrictlyLoaded
from samora_monai.networks.trainable import set_trainable

PRESETS: dict[str, dict[str, Any]] = {
    "vit_b": {"embed_dim": 768, "depth": 12, "num_heads": 12, "global_attn_indexes": (2, 5, 8, 11)},
    "vit_l": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "global_attn_indexes": (5, 11, 17, 23)},
    "vit_h": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "global_attn_indexes": (7, 15, 23, 31)},
    "tiny": {"embed_dim": 128, "depth": 6, "num_heads": 4, "global_attn_indexes": (2, 5)},
}
DECODERS = ("sam", "hierarchical")
PIXEL_MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)  # SAM's statistics, on images in [0, 1]
PIXEL_STD = (58.395 / 255, 57.12 / 255, 57.375 / 255)


def resize_image(x: Tensor, size: tuple[int, int]) -> Tensor:
    """``[B, C, H, W]`` -> ``[B, C, *size]``, bilinear, antialiased where it shrinks."""
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)


class Segmenter(StrictlyLoaded):
    """SAM's three parts under SAM's names, and the way from an image to class logits.

    Args:
        image_encoder, prompt_encoder, mask_decoder: the parts.
        mask_decoder2: H-SAM's second decoder, if any.
        image_size: side S of the network's square input.
        in_channels: 1 (grey, repeated to three channels) or 3.
        pixel_mean, pixel_std: statistics per channel for images in [0, 1].
        stage: what a network with two decoders answers in evaluation: the mean of both (3) or the second alone (2).
    """

    def __init__(
        self,
        image_encoder: ImageEncoder,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        image_size: int,
        in_channels: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        mask_decoder2: HierarchicalDecoder | None = None,
        stage: int = 3,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.mask_decoder2 = mask_decoder2
        self.stage = stage
        self.image_size = image_size
        self.in_channels = in_channels
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean, dtype=torch.float32).reshape(-1, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(pixel_std, dtype=torch.float32).reshape(-1, 1, 1))

    @property
    def num_classes(self) -> int:
        return self.mask_decoder.num_mask_tokens

    @property
    def decoder(self) -> str:
        """``"sam"`` or ``"hierarchical"``."""
        return DECODERS[self.mask_decoder2 is not None]

    def describe(self) -> str:
        """One line for people: what is built."""
        decoder = "SAM decoder"
        if self.mask_decoder2 is not None:
            gate = " with class-balanced attention" if self.mask_decoder2.class_attention is not None else ""
            decoder = f"hierarchical decoder{gate}, stage {self.stage}"
        return f"{self.describe_encoder()}; {decoder}, {self.num_classes} classes"

    def describe_encoder(self) -> str:
        """The encoder's part of that line."""
        encoder = self.image_encoder
        experts = f"experts {', '.join(encoder.experts)}" if encoder.experts else "no expert"
        fusion = f", HL-Attn on {encoder.fusion} outputs" if encoder.fusion else ""
        return f"ViT {encoder.embed_dim} wide, {len(encoder.blocks)} deep, input {self.image_size}; {experts}{fusion}"

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor | list[Tensor]:
        """Prompt-free segmentation.

        Args:
            x: ``[B, in_channels, H, W]``, any H and W, values in [0, 1].
            label: ``[B, 1, h, w]`` class numbers; only class-balanced attention wants them, and only in training.

        Returns:
            logits ``[B, num_classes, H, W]`` in evaluation. In training each decoder's at its own resolution, on which
            its loss is defined: ``[B, num_classes, S/4, S/4]`` of SAM's; a list of these and ``[B, num_classes, S, S]``
            of the hierarchical one.
        """
        stages = self.stage_logits(x, label)
        if self.training:
            return list(stages) if len(stages) > 1 else stages[0]
        if self.stage == 2:
            stages = stages[-1:]
        size = x.shape[-2:]
        masks = [F.interpolate(s, size, mode="bilinear", align_corners=False) for s in stages]
        return masks[0] if len(masks) == 1 else (masks[0] + masks[1]) / 2

    def stage_logits(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, ...]:
        """Logits of each decoder: ``[B, num_classes, S/4, S/4]`` and, of a second one, ``[B, num_classes, S, S]``."""
        sparse, dense = self.prompt_encoder()
        pe = self.prompt_encoder.get_dense_pe()
        embedding = self.image_encoder(self.preprocess(x))
        first = self.mask_decoder.decode(embedding, pe, sparse, dense)
        if self.mask_decoder2 is None:
            return (first.masks,)
        return first.masks, self.mask_decoder2.predict_masks(embedding, pe, dense, first, label)[0]

    def low_res_logits(self, x: Tensor) -> Tensor:
        """``[B, in_channels, H, W]`` in [0, 1] -> ``[B, num_classes, S/4, S/4]``, of the first decoder."""
        return self.stage_logits(x)[0]

    def preprocess(self, x: Tensor) -> Tensor:
        """``[B, in_channels, H, W]`` in [0, 1] -> the encoder's input ``[B, 3, S, S]``."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise InputError(f"expected images [B, {self.in_channels}, H, W], got {list(x.shape)}")
        x = convert_to_tensor(x, track_meta=False)  # the metadata of a MONAI tensor would slow down every operation
        x = resize_image(x, (self.image_size, self.image_size))
        return (x - self.pixel_mean) / self.pixel_std  # a grey image is repeated by broadcasting

    def predict_masks(self, records: Sequence[dict[str, Any]], multimask_output: bool) -> list[dict[str, Tensor]]:
        """Promptable segmentation, as `Sam.forward` of segment-anything.

        Args:
            records: for each image a dict with ``image`` ``[3 or 1, h, w]`` in [0, 1], its longer side already S (the
                rest is padded with zeros at the bottom and right); ``original_size`` (H, W), by default (h, w);
                and any of ``point_coords`` ``[n, p, 2]`` with ``point_labels`` ``[n, p]``, ``boxes`` ``[n, 4]``,
                ``mask_inputs`` ``[n, 1, S/4, S/4]``, in pixels of `image`.
            multimask_output: mask tokens 1 and up instead of token 0.

        Returns:
            for each image ``mask_logits`` ``[n, T, H, W]`` (a mask is where they exceed 0), ``iou_predictions``
            ``[n, T]`` and ``low_res_logits`` ``[n, T, S/4, S/4]``, to be given as the next ``mask_inputs``.

        Raises:
            InputError: the decoder is the hierarchical one, which knows no prompts, or an image is too large.
        """
        if self.mask_decoder2 is not None:
            raise InputError("the hierarchical decoder takes no prompts; build the network with decoder='sam'")
        embeddings = self.image_encoder(torch.stack([self._pad(r["image"]) for r in records]))
        results = []
        for record, embedding in zip(records, embeddings, strict=True):
            points = (record["point_coords"], record["point_labels"]) if "point_coords" in record else None
            sparse, dense = self.prompt_encoder(points, record.get("boxes"), record.get("mask_inputs"))
            low_res, iou = self.mask_decoder(
                embedding[None], self.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output
            )
            height, width = record["image"].shape[-2:]
            masks = F.interpolate(low_res, (self.image_size, self.image_size), mode="bilinear", align_corners=False)
            size = tuple(record.get("original_size", (height, width)))
            masks = F.interpolate(masks[..., :height, :width], size, mode="bilinear", align_corners=False)
            results.append({"mask_logits": masks, "iou_predictions": iou, "low_res_logits": low_res})
        return results

    def _pad(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        if max(height, width) > self.image_size:
            raise InputError(f"the image is {height} x {width}, larger than the network's {self.image_size}; resize it")
        image = (image - self.pixel_mean) / self.pixel_std
        return F.pad(image, (0, self.image_size - width, 0, self.image_size - height))


def build_segmenter(
    encoder: str | dict[str, Any] = "vit_b",
    image_size: int = 224,
    in_channels: int = 1,
    num_classes: int = 2,
    decoder: str = "sam",
    experts: Sequence[str] = ("task",),
    rank: int = 4,
    fusion: str | None = None,
    fusion_order: Sequence[str] = tuple(reversed(LEVELS)),
    fusion_width: int | None = None,
    decoder_rank: int = 0,
    pixel_mean: Sequence[float] = PIXEL_MEAN,
    pixel_std: Sequence[float] = PIXEL_STD,
    gradient_checkpointing: bool = False,
    train: str = "adapters",
    stage: int = 3,
    embedding_noise: float = 0.2,
    class_balanced_attention: bool = False,
    fusion_start: str = "zero",
) -> Segmenter:
    """Builds SAM, SAMed, SAMora, H-SAM or H-SAMora from one set of parts; weights are random until a file is loaded.

    Args:
        encoder: ``"vit_b"``, ``"vit_l"``, ``"vit_h"``, ``"tiny"``, or a dict of `ImageEncoder` sizes.
        image_size: side of the square network input, a multiple of 16; images of any size are resized to it.
        in_channels: 1 or 3.
        num_classes: classes with background; one mask token for each.
        decoder: ``"sam"``, or ``"hierarchical"``: H-SAM's two decoders.
        experts: names of the encoder's experts, e.g. ``("task",)`` or ``("image", "patch", "pixel")``.
        rank: rank of the experts.
        fusion: ``None`` adds the experts' deltas; ``"attention"`` or ``"block"``: HL-Attn (see `Block`).
        fusion_order: levels from the lowest to the highest; those without an expert are passed over.
        fusion_width: inner width of HL-Attn; ``None`` is the encoder's width, as in the paper.
        decoder_rank: rank of experts in the decoder's transformer (SAMed_s), 0 for none.
        pixel_mean, pixel_std: statistics of images in [0, 1]; SAM's by default, 0 and 1 for SAMed's files.
        gradient_checkpointing: recompute encoder blocks in the backward pass.
        train: which parameters train, see `set_trainable`.
        stage: hierarchical decoder, evaluation: 3 the mean of both stages' logits, 2 the second's alone.
        embedding_noise, class_balanced_attention: hierarchical decoder, see `HierarchicalDecoder`.
        fusion_start: HL-Attn's output projections at first: ``"zero"``, SAM with its highest expert, or ``"random"``.

    Raises:
        InputError: for a setting that does not exist or does not fit the others.
    """
    if isinstance(encoder, str):
        if encoder not in PRESETS:
            raise InputError(f"unknown encoder {encoder!r}; choose one of {', '.join(PRESETS)} or give a dict of sizes")
        encoder = PRESETS[encoder]
    patch_size = encoder.get("patch_size", 16)
    if image_size % patch_size or image_size < patch_size:
        raise InputError(f"image_size is {image_size} but must be a multiple of {patch_size}, e.g. 224, 512 or 1024")
    if in_channels not in (1, 3):
        raise InputError(f"in_channels is {in_channels} but must be 1 (grey) or 3 (colour, or three slices)")
    if num_classes < 2:
        raise InputError(f"num_classes is {num_classes} but counts the background too, so at least 2")
    if decoder not in DECODERS:
        raise InputError(f"unknown decoder {decoder!r}; choose 'sam' or 'hierarchical'")
    if decoder != "hierarchical" and class_balanced_attention:
        raise InputError("class_balanced_attention is of the hierarchical decoder; give decoder='hierarchical' too")
    if decoder == "hierarchical" and decoder_rank:
        raise InputError(f"decoder_rank is {decoder_rank} but experts stand in SAM's decoder only; give decoder_rank=0")
    if stage not in (2, 3):
        raise InputError(f"stage is {stage!r} but must be 3 (mean of both stages) or 2 (the second alone)")
    if embedding_noise < 0:
        raise InputError(f"embedding_noise is {embedding_noise} but must be at least 0")
    if len(pixel_mean) != 3 or len(pixel_std) != 3 or max(*pixel_mean, *pixel_std) > 1 or min(pixel_std) <= 0:
        raise InputError(
            "pixel_mean and pixel_std are three values each, for images in [0, 1]; divide 0-255 ones by 255"
        )
    if isinstance(experts, str) or len(set(experts)) < len(experts):
        raise InputError(f"experts is {experts!r} but must be a list of different names, e.g. {list(LEVELS)}")
    if rank < 1 or decoder_rank < 0:
        raise InputError(f"rank is {rank} and decoder_rank {decoder_rank} but must be at least 1 and 0")
    experts = tuple(experts)
    if fusion not in (None, "attention", "block"):
        raise InputError(f"unknown fusion {fusion!r}; choose 'attention', 'block' or null")
    order = tuple(name for name in fusion_order if name in experts) if fusion else ()
    if fusion and sorted(order) != sorted(experts):
        raise InputError(f"fusion needs every expert of {experts} once in fusion_order, which is {tuple(fusion_order)}")
    if fusion and not experts:
        raise InputError(f"fusion {fusion!r} needs experts, e.g. {LEVELS}")
    if fusion_width is not None and fusion_width < 1:
        raise InputError(f"fusion_width is {fusion_width} but must be at least 1, or null for the encoder's width")
    if fusion_start not in ("zero", "random"):
        raise InputError(f"unknown fusion_start {fusion_start!r}; choose 'zero' or 'random'")
    dim, hierarchical = encoder.get("out_chans", 256), decoder == "hierarchical"
    net = Segmenter(
        ImageEncoder(
            image_size=image_size,
            experts=experts,
            rank=rank,
            fusion=fusion,
            fusion_order=order,
            fusion_width=fusion_width,
            fusion_start=fusion_start,
            gradient_checkpointing=gradient_checkpointing,
            **encoder,
        ),
        PromptEncoder(dim, image_size // patch_size, image_size, num_point_embeddings=11 if hierarchical else 4),
        MaskDecoder(dim, num_classes, decoder_rank, self_attention_first=not hierarchical),
        image_size,
        in_channels,
        pixel_mean,
        pixel_std,
        HierarchicalDecoder(dim, num_classes, embedding_noise, class_balanced_attention) if hierarchical else None,
        stage,
    )
    set_trainable(net, train)
    return net
