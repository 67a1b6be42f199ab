"""SAM 2's image encoder: Hiera and a feature pyramid, with optional experts and their fusion in each block.

SAM 2: https://arxiv.org/abs/2408.00714; Hiera: https://arxiv.org/abs/2306.00989 (facebookresearch/sam2, Apache-2.0).
Four stages with tokens of 4, 8, 16 and 32 pixels. The first block of stages 2 to 4 doubles width and heads, and pools:

    x <- maxpool(proj(norm1(x))) + attention(maxpool(q), k, v)        maximum over 2 x 2 tokens

It still has the windows of the stage before.
Differs from SAM 2's code in:
- padded tokens are not projected (`windows`);
- a block may have experts (`experts`) and fuse them (`hl_attn`);
- the neck adds in the precision of its inputs, not always in float32, and has no positions, which only video needs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samora_monai.networks.blocks import Attention, Block, Encoder, Features, fused_part
from samora_monai.networks.image_encoder import PatchEmbed
from samora_monai.networks.layers import MLP
from samora_monai.networks.windows import Windows


class PooledAttention(Attention):
    """Attention with pooled queries: `[N, dim]` -> `[N / 4, out_dim]`; experts act before the pooling."""

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, windows: Windows) -> Tensor:
        return super()._attend(windows.pool(q), k, v, windows)


class PooledBlock(Block):
    """The first block of a later stage: `[B, h, w, dim]` -> `[B, h/2, w/2, out_dim]`."""

    def __init__(
        self, dim: int, out_dim: int, attention: Attention, mlp: nn.Module, fusion: str | None, **hl_attn: Any
    ) -> None:
        super().__init__(dim, out_dim, attention, mlp, fusion, **hl_attn)
        self.proj = nn.Linear(dim, out_dim)

    def _after(self, windows: Windows) -> Windows:
        return windows.pooled()

    def _shortcut(self, x: Tensor, normalised: Tensor, windows: Windows) -> Tensor:
        return windows.pool(self.proj(normalised))


class Hiera(nn.Module):
    """The trunk: patches of 4 x 4 pixels, and the blocks of four stages. It is run by `HieraEncoder.tokens`.

    Args:
        embed_dim, num_heads: width of the tokens and number of heads in the first stage.
        stages: number of blocks in each stage.
        global_att_blocks: blocks without windows.
        window_spec: side of the windows in each stage.
        window_pos_embed_bkg_spatial_size: grid of the absolute positions, which are resized to that of the tokens.
        experts, rank, fusion, fusion_blocks: see `fused_part`.
        width: inner width of HL-Attn in the first stage; it doubles with the width of the tokens.
        hl_attn: `order`, `start` and `norm` of `HLAttn`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        stages: Sequence[int],
        global_att_blocks: Sequence[int],
        window_spec: Sequence[int],
        window_pos_embed_bkg_spatial_size: Sequence[int],
        experts: Sequence[str],
        rank: int,
        fusion: str | None,
        width: int | None,
        fusion_blocks: Collection[int] | None = None,
        **hl_attn: Any,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(7, 3, embed_dim, stride=4, padding=3)
        self.pos_embed = nn.Parameter(torch.zeros(1, embed_dim, *window_pos_embed_bkg_spatial_size))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, embed_dim, window_spec[0], window_spec[0]))
        self.blocks = nn.ModuleList()
        firsts = set(accumulate(stages[:-1]))  # the first blocks of stages 2 to 4
        stage, dim = 0, embed_dim
        for i in range(sum(stages)):
            pooled = i in firsts
            side = 0 if i in global_att_blocks else window_spec[stage]  # before the stage is counted
            stage += pooled
            scale = 2**stage
            out_dim = embed_dim * scale
            parts = (PooledAttention, PooledBlock) if pooled else (Attention, Block)
            own, fused = fused_part(i, experts, fusion, fusion_blocks, hl_attn.get("order", ()))
            attention = parts[0](dim, out_dim, num_heads * scale, side, own, rank)
            mlp = MLP(out_dim, 4 * out_dim, out_dim, 2, F.gelu)
            options = {**hl_attn, "width": width and width * scale}
            self.blocks.append(parts[1](dim, out_dim, attention, mlp, fused, **options))
            dim = out_dim
        for positions in (self.pos_embed, self.pos_embed_window):
            nn.init.trunc_normal_(positions, std=0.02)

    def embed(self, x: Tensor) -> Tensor:
        """`[B, 3, H, W]` -> tokens before the first block `[B, H/4, W/4, embed_dim]`."""
        x = self.patch_embed(x)
        positions = F.interpolate(self.pos_embed, x.shape[1:3], mode="bicubic")
        window = self.pos_embed_window
        repeats = [n // side for n, side in zip(positions.shape[2:], window.shape[2:], strict=True)]
        return x + (positions + window.tile(repeats)).permute(0, 2, 3, 1)


class FpnNeck(nn.Module):
    """Feature pyramid: outputs of the four stages -> maps of `dim` channels with strides 4, 8 and 16."""

    def __init__(self, widths: Sequence[int], dim: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(  # from the coarsest to the finest map
            nn.Sequential(OrderedDict(conv=nn.Conv2d(width, dim, kernel_size=1))) for width in reversed(widths)
        )

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """`[B, h, w, width]` of each stage -> `[B, dim, h, w]` of the first three; the fourth enters the third."""
        maps = [t.permute(0, 3, 1, 2) for t in stages]
        fine, middle, coarse, coarsest = (conv(t) for conv, t in zip(reversed(self.convs), maps, strict=True))
        return fine, middle, coarse + F.interpolate(coarsest, scale_factor=2.0, mode="nearest")


class HieraEncoder(Encoder):
    """SAM 2's image encoder: `[B, 3, H, W]` normalised pixels -> `[B, dim, H/16, W/16]`, H and W multiples of 32.

    Args:
        out_chans: width `dim` of the embedding (256).
        experts, rank, fusion, gradient_checkpointing: see `Encoder`.
        sizes: the other arguments of `Hiera`.
    """

    def __init__(
        self,
        out_chans: int = 256,
        experts: Sequence[str] = (),
        rank: int = 4,
        fusion: str | None = None,
        gradient_checkpointing: bool = False,
        **sizes: Any,
    ) -> None:
        super().__init__(experts, rank, fusion, gradient_checkpointing)
        self.embed_dim, self.num_heads, self.stages = sizes["embed_dim"], sizes["num_heads"], tuple(sizes["stages"])
        self.taps = tuple(end - 1 for end in accumulate(self.stages))
        self.tap_widths = tuple(self.embed_dim * 2**stage for stage in range(4))
        self.tap_strides = (4, 8, 16, 32)
        self.neck_inputs = self.taps
        self.distilled_width = out_chans
        self.resized = ()
        self.trunk = Hiera(experts=experts, rank=rank, fusion=fusion, **sizes)
        self.neck = FpnNeck(self.tap_widths, out_chans)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).embedding

    def encoder_blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.trunk.blocks))

    def embed(self, x: Tensor) -> Tensor:
        return self.trunk.embed(x)

    def apply_neck(self, tokens: Sequence[Tensor]) -> Features:
        fine, middle, embedding = self.neck(tokens)
        return Features(embedding, (fine, middle))

    def distilled(self, x: Tensor) -> Tensor:
        return self(x)  # not stage 3: its loss does not reach the experts of stage 4, see benchmarks/README.md

    def describe(self) -> str:
        return f"Hiera {self.embed_dim} wide, {len(self.trunk.blocks)} deep"
