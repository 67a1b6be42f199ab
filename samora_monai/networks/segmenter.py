"""The segmentation network: SAM or SAM 2 for images of any size, prompt-free or with prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from monai.utils import convert_to_tensor
from torch import Tensor, nn

from samora_monai.errors import InputError
from samora_monai.networks.blocks import Encoder, Features
from samora_monai.networks.config import DECODERS
from samora_monai.networks.framing import Framing, Padded, Stretched, resize_image, resize_logits
from samora_monai.networks.hsam.hierarchical_decoder import HierarchicalDecoder
from samora_monai.networks.mask_decoder import MaskDecoder
from samora_monai.networks.prompt_encoder import PromptEncoder
from samora_monai.strict import StrictlyLoaded


class Segmenter(StrictlyLoaded):
    """The three parts of SAM or SAM 2 under their own names: images in, class logits out.

    Args:
        image_encoder, prompt_encoder, mask_decoder, mask_decoder2: the parts; the last is H-SAM's second decoder.
        image_size: side S of the network's square input.
        in_channels: 1 (grey, repeated to three channels) or 3.
        pixel_mean, pixel_std: statistics of each channel, for images in [0, 1].
        stage: output of a network with two decoders in evaluation: 3 the mean of both, 2 the second alone.
        sam2: name the parts as SAM 2 does, with its `no_mem_embed`, and frame images as it does.
    """

    def __init__(
        self,
        image_encoder: Encoder,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        mask_decoder2: HierarchicalDecoder | None,
        image_size: int,
        in_channels: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        stage: int,
        sam2: bool = False,
    ) -> None:
        super().__init__()
        self.sam2 = sam2
        self.prefix = "sam_" if sam2 else ""
        self.framing: Framing = Stretched() if sam2 else Padded()
        self.image_encoder = image_encoder
        setattr(self, f"{self.prefix}prompt_encoder", prompt_encoder)
        setattr(self, f"{self.prefix}mask_decoder", mask_decoder)
        self.mask_decoder2 = mask_decoder2
        # SAM 2: "no frames in memory", which every image of a video without predecessors gets
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, prompt_encoder.embed_dim)) if sam2 else None
        self.stage = stage
        self.image_size = image_size
        self.in_channels = in_channels
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1))

    @property
    def prompt_encoder(self) -> PromptEncoder:
        return cast(PromptEncoder, self._modules[f"{self.prefix}prompt_encoder"])

    @property
    def mask_decoder(self) -> MaskDecoder:
        return cast(MaskDecoder, self._modules[f"{self.prefix}mask_decoder"])

    @property
    def num_classes(self) -> int:
        return self.mask_decoder.num_mask_tokens

    @property
    def decoder(self) -> str:
        """`"sam"` or `"hierarchical"`."""
        return DECODERS[self.mask_decoder2 is not None]

    def describe(self) -> str:
        """Describe the network in one line."""
        decoder = f"{'SAM 2' if self.sam2 else 'SAM'} decoder"
        if self.mask_decoder2 is not None:
            gate = " with class-balanced attention" if self.mask_decoder2.class_attention is not None else ""
            decoder = f"hierarchical decoder{gate}, stage {self.stage}"
        return f"{self.describe_encoder()}; {decoder}, {self.num_classes} classes"

    def describe_encoder(self) -> str:
        """Describe the encoder in one line."""
        encoder = self.image_encoder
        experts = f"experts {', '.join(encoder.experts)}" if encoder.experts else "no expert"
        fusion = f", HL-Attn on {encoder.fusion} outputs" if encoder.fusion else ""
        blocks = encoder.encoder_blocks()
        if encoder.fusion and (fused := [i for i, block in enumerate(blocks) if block.fusion]) != [*range(len(blocks))]:
            fusion += f" of {'block' if len(fused) == 1 else 'blocks'} {', '.join(map(str, fused))}"
        return f"{encoder.describe()}, input {self.image_size}; {experts}{fusion}"

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor | list[Tensor]:
        """Prompt-free segmentation.

        Args:
            x: `[B, in_channels, H, W]`, any H and W, values in [0, 1].
            label: `[B, 1, h, w]` class numbers; only used by class-balanced attention in training.

        Returns:
            logits `[B, num_classes, H, W]` in evaluation; in training those of `stage_logits`, two as a list.
        """
        stages = self.stage_logits(x, label)
        if self.training:
            return list(stages) if len(stages) > 1 else stages[0]
        if self.stage == 2:
            stages = stages[-1:]
        size = (x.shape[-2], x.shape[-1])
        masks = [resize_logits(s, size) for s in stages]
        return masks[0] if len(masks) == 1 else (masks[0] + masks[1]) / 2

    def stage_logits(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, ...]:
        """Logits of each decoder: `[B, num_classes, S/4, S/4]` and, with a second one, `[B, num_classes, S, S]`."""
        sparse, dense = self.prompt_encoder()
        pe = self.prompt_encoder.get_dense_pe()
        embedding, skips = self._features(self.preprocess(x))
        first = self.mask_decoder.decode(embedding, pe, sparse, dense, skips)
        if self.mask_decoder2 is None:
            return (first.masks,)
        return first.masks, self.mask_decoder2.predict_masks(embedding, pe, dense, first, label)[0]

    def low_res_logits(self, x: Tensor) -> Tensor:
        """`[B, in_channels, H, W]` in [0, 1] -> `[B, num_classes, S/4, S/4]`, of the first decoder."""
        return self.stage_logits(x)[0]

    def encode(self, x: Tensor, blocks: Sequence[int] = (-1,)) -> list[Tensor]:
        """`[B, in_channels, H, W]` in [0, 1] -> tokens `[B, h, w, width]` after each of `blocks`, as `tokens`."""
        return self.image_encoder.tokens(self.preprocess(x), blocks)

    def preprocess(self, x: Tensor) -> Tensor:
        """Resize and normalise: `[B, in_channels, H, W]` in [0, 1] -> input of the encoder `[B, 3, S, S]`."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise InputError(f"expected images [B, {self.in_channels}, H, W], got {list(x.shape)}")
        x = convert_to_tensor(x, track_meta=False)  # metadata would slow down every operation
        x = resize_image(x, (self.image_size, self.image_size))
        return (x - self.pixel_mean) / self.pixel_std  # broadcasting repeats a grey image

    def predict_masks(self, records: Sequence[dict[str, Any]], multimask_output: bool) -> list[dict[str, Tensor]]:
        """Promptable segmentation, as in `Sam.forward` of segment-anything and SAM 2's image predictor.

        Args:
            records: for each image a dict with `image` `[3 or 1, h, w]` in [0, 1]; for SAM its longer side is S (the
                rest is padded with zeros at the bottom and right), for SAM 2 it is resized to S x S; `original_size`
                (H, W), by default (h, w); and any of `point_coords` `[n, p, 2]` with `point_labels` `[n, p]`, `boxes`
                `[n, 4]`, `mask_inputs` `[n, 1, S/4, S/4]`, in pixels of `image`.
            multimask_output: mask tokens 1 and up instead of token 0.

        Returns:
            for each image `mask_logits` `[n, T, H, W]` (a mask is where they exceed 0), `iou_predictions`
            `[n, T]` and `low_res_logits` `[n, T, S/4, S/4]`, for use as the next `mask_inputs`; those of SAM 2 are
            limited to [-32, 32].
        """
        embeddings, skips = self.embed([record["image"] for record in records])
        return [
            self.answer(Features(embeddings[i : i + 1], tuple(t[i : i + 1] for t in skips)), record, multimask_output)
            for i, record in enumerate(records)
        ]

    def embed(self, images: Sequence[Tensor]) -> Features:
        """Embed images `[3 or 1, h, w]` as those of `predict_masks`, once for any number of calls of `answer`."""
        if self.mask_decoder2 is not None:
            raise InputError("the hierarchical decoder takes no prompts; build the network with decoder='sam'")
        frames = [self.framing.frame((image - self.pixel_mean) / self.pixel_std, self.image_size) for image in images]
        return self._features(torch.stack(frames))

    def answer(self, features: Features, record: dict[str, Any], multimask_output: bool) -> dict[str, Tensor]:
        """Masks of one image for the prompts of its record, as of `predict_masks`; `features` are its embedding."""
        side, shape = self.image_size, tuple(record["image"].shape[-2:])
        scale = self.pixel_mean.new_tensor(self.framing.scale(shape, side))
        points, boxes = None, None
        if "point_coords" in record:
            points = (record["point_coords"] * scale, record["point_labels"])
        if "boxes" in record:
            boxes = record["boxes"] * scale.repeat(2)
        sparse, dense = self.prompt_encoder(points, boxes, record.get("mask_inputs"))
        pe = self.prompt_encoder.get_dense_pe()
        low_res, iou = self.mask_decoder(features.embedding, pe, sparse, dense, multimask_output, features.skips)
        masks = self.framing.unframe(low_res, shape, side, tuple(record.get("original_size", shape)))
        return {
            "mask_logits": masks,
            "iou_predictions": iou,
            "low_res_logits": self.framing.prompt_logits(low_res),
        }

    def _features(self, x: Tensor) -> Features:
        """Embeddings of `[B, 3, S, S]` normalised pixels for the decoder."""
        features = self.image_encoder.features(x)
        if self.no_mem_embed is None:
            return features
        return features._replace(embedding=features.embedding + self.no_mem_embed.reshape(1, -1, 1, 1))
