"""SAM's image encoder, with optional experts and their fusion in each block.

SAM: https://arxiv.org/abs/2304.02643 (segment-anything, Apache-2.0); plain ViT detector: https://arxiv.org/abs/2203.16527.
Differs from SAM's code in:
- attention uses fused kernels (`rel_pos_attention`) and does not project padded tokens (`windows`);
- a block may have experts (`experts`) and fuse them (`hl_attn`); without experts it computes SAM's block.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from samora_monai.networks.blocks import Attention, Block, Encoder, Features, fused_part
from samora_monai.networks.layers import LayerNorm2d, MLPBlock
from samora_monai.networks.rel_pos_attention import rel_pos_attention


class RelPosAttention(Attention):
    """Attention with decomposed relative position.

    Args:
        size: side of a window in tokens, or of the grid where attention is global.
        dim, num_heads, side, experts, rank: see `Attention`.
    """

    def __init__(self, size: int, dim: int, num_heads: int, side: int, experts: Sequence[str], rank: int) -> None:
        super().__init__(dim, dim, num_heads, side, experts, rank)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * size - 1, dim // num_heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * size - 1, dim // num_heads))

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
        return rel_pos_attention(q, k, v, self.rel_pos_h, self.rel_pos_w, query_grid=grid)


class PatchEmbed(nn.Module):
    """Linear embedding of patches of pixels: `[B, 3, H, W]` -> `[B, H / stride, W / stride, dim]`.

    Args:
        patch_size, stride, padding: of the convolution; SAM's patches do not overlap, SAM 2's do.
    """

    def __init__(self, patch_size: int, in_chans: int, dim: int, stride: int | None = None, padding: int = 0) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=stride or patch_size, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


class ImageEncoder(Encoder):
    """SAM's ViT: `[B, 3, S, S]` normalised pixels -> `[B, 256, S/16, S/16]`.

    Args:
        image_size: side S of the square input, a multiple of `patch_size`.
        embed_dim, depth, num_heads, mlp_ratio, window_size, global_attn_indexes, patch_size, in_chans, out_chans: as in
            SAM.
        experts, rank, fusion, fusion_blocks: see `fused_part`.
        hl_attn: see `Block`.
        gradient_checkpointing: see `Encoder`.
    """

    def __init__(
        self,
        image_size: int = 1024,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        window_size: int = 14,
        global_attn_indexes: Sequence[int] = (2, 5, 8, 11),
        patch_size: int = 16,
        in_chans: int = 3,
        out_chans: int = 256,
        experts: Sequence[str] = (),
        rank: int = 4,
        fusion: str | None = None,
        fusion_blocks: Collection[int] | None = None,
        gradient_checkpointing: bool = False,
        **hl_attn: Any,
    ) -> None:
        super().__init__(experts, rank, fusion, gradient_checkpointing)
        self.embed_dim = self.distilled_width = embed_dim
        self.num_heads = num_heads
        self.stages = (depth,)
        self.neck_inputs = (depth - 1,)
        self.taps = tuple(depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))
        self.tap_widths, self.tap_strides = (embed_dim,) * 4, (patch_size,) * 4
        tables = [f"blocks.{i}.attn.rel_pos_{axis}" for i in global_attn_indexes for axis in "hw"]
        self.resized = ("pos_embed", *tables)
        grid = image_size // patch_size
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, embed_dim))
        self.blocks = nn.ModuleList()
        for i in range(depth):
            side = 0 if i in global_attn_indexes else window_size
            own, fused = fused_part(i, experts, fusion, fusion_blocks, hl_attn.get("order", ()))
            attention = RelPosAttention(side or grid, embed_dim, num_heads, side, own, rank)
            mlp = MLPBlock(embed_dim, int(embed_dim * mlp_ratio))
            self.blocks.append(Block(embed_dim, embed_dim, attention, mlp, fused, **hl_attn))
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dim, out_chans, kernel_size=1, bias=False),
            LayerNorm2d(out_chans),
            nn.Conv2d(out_chans, out_chans, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(out_chans),
        )
        for name, parameter in self.named_parameters():
            if name == "pos_embed" or name.endswith(("rel_pos_h", "rel_pos_w")):
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).embedding

    def encoder_blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))

    def embed(self, x: Tensor) -> Tensor:
        return self.patch_embed(x) + self.pos_embed

    def apply_neck(self, tokens: Sequence[Tensor]) -> Features:
        return Features(self.neck(tokens[0].permute(0, 3, 1, 2)))

    def distilled(self, x: Tensor) -> Tensor:
        return self.tokens(x)[0].permute(0, 3, 1, 2)

    def describe(self) -> str:
        return f"ViT {self.embed_dim} wide, {len(self.blocks)} deep"
