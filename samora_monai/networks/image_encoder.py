"""SAM's image encoder, with optional experts and their fusion in each block.

SAM: https://arxiv.org/abs/2304.02643 (segment-anything, Apache-2.0); plain ViT detector: https://arxiv.org/abs/2203.16527.
Differs from SAM's code in:
- attention uses fused kernels (`rel_pos_attention`) and does not project padded tokens (`windows`);
- a block may have experts (`experts`) and fuse them (`hl_attn`); without experts it computes SAM's block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samora_monai.errors import InputError
from samora_monai.networks.experts import Expert, add_experts, branch_experts
from samora_monai.networks.hl_attn import HLAttn
from samora_monai.networks.layers import LayerNorm2d, MLPBlock
from samora_monai.networks.rel_pos_attention import rel_pos_attention
from samora_monai.networks.windows import Windows


class Attention(nn.Module):
    """Multi-head attention with decomposed relative position and experts on queries and values.

    Args:
        dim, num_heads: width of the tokens, and number of heads.
        windows: windows of the token grid.
        experts, rank: names of the experts, and the rank of each.
    """

    def __init__(self, dim: int, num_heads: int, windows: Windows, experts: Sequence[str], rank: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.windows = windows
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * windows.side - 1, dim // num_heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * windows.side - 1, dim // num_heads))
        self.experts = nn.ModuleDict({name: Expert(dim, dim, rank) for name in experts})

    def forward(self, x: Tensor) -> Tensor:
        """Normalised tokens `[B, h, w, dim]` -> `[B, h, w, dim]`, with the deltas of all experts in one branch."""
        q, k, v = self.qkv(x).chunk(3, -1)
        if len(self.experts):
            q, v = add_experts(self._experts(), x, q, v)
        return self.proj(self._attend(q, k, v))

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Attention before its projection: `[B, h, w, dim]` of the base and `[L, B, h, w, dim]` with each expert."""
        q, k, v = self.qkv(x).chunk(3, -1)
        count = len(self.experts)
        expert_q, expert_v = branch_experts(self._experts(), x, q, v)
        experts = self._attend(expert_q, k.repeat(count, 1, 1, 1), expert_v)
        return self._attend(q, k, v), experts.reshape(count, *x.shape)

    def merge_experts(self) -> None:
        """Add each expert to the base, `W_q += B_q A_q` and `W_v += B_v A_v`, and remove it."""
        q, _, v = self.qkv.weight.chunk(3)
        for expert in self._experts():
            delta_q, delta_v = expert.deltas()
            q += delta_q
            v += delta_v
        self.experts = nn.ModuleDict()

    def _experts(self) -> list[Expert]:
        return cast("list[Expert]", list(self.experts.values()))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def attention(q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
            return rel_pos_attention(q, k, v, self.rel_pos_h, self.rel_pos_w, query_grid=grid)

        _, pad_k, pad_v = self.qkv.bias.chunk(3)  # the projection of a zero token
        return self.windows.attend(attention, q, k, v, self.num_heads, pad_k, pad_v)


class Block(nn.Module):
    """A transformer block: attention and MLP, each after a LayerNorm and around a residual.

    With a fusion, each expert has a branch, E_i is the difference between branch i and the base, and HL-Attn fuses the
    E_i into E:

    - `"attention"`: E_i = a_i - a, a the attention before its output projection; the MLP gets x + proj(a + E);
    - `"block"` (the paper's equation): each branch runs the MLP, E_i = y_i - y, and the block returns y + E.

    Args:
        dim, num_heads, mlp_ratio: sizes of SAM's block.
        windows, experts, rank: see `Attention`.
        fusion: None (the deltas of the experts are added), `"attention"` or `"block"`.
        hl_attn: `order`, `width` and `start` of `HLAttn`; not used without a fusion.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        windows: Windows,
        experts: Sequence[str],
        rank: int,
        fusion: str | None,
        **hl_attn: Any,
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, windows, experts, rank)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLPBlock(dim, int(dim * mlp_ratio))
        self.hl_attn = HLAttn(dim, num_heads, **hl_attn) if fusion else None

    def forward(self, x: Tensor) -> Tensor:
        """`[B, h, w, dim]` -> `[B, h, w, dim]`."""
        if self.hl_attn is None:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        base, experts = self.attn.branches(self.norm1(x))
        if self.fusion == "attention":
            x = x + self.attn.proj(base + self._fuse(experts - base))
            return x + self.mlp(self.norm2(x))
        base, experts = (x + self.attn.proj(t) for t in (base, experts))
        base, experts = (t + self.mlp(self.norm2(t)) for t in (base, experts))
        return base + self._fuse(experts - base)

    def _fuse(self, contributions: Tensor) -> Tensor:  # E_i `[L, B, h, w, dim]` -> E `[B, h, w, dim]`
        assert self.hl_attn is not None
        return self.hl_attn(dict(zip(self.attn.experts, contributions, strict=True)), self.attn.windows)


class PatchEmbed(nn.Module):
    """Linear embedding of patches of 16 x 16 pixels: `[B, 3, S, S]` -> `[B, S/16, S/16, dim]`."""

    def __init__(self, patch_size: int, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


class ImageEncoder(nn.Module):
    """SAM's ViT: `[B, 3, S, S]` normalised pixels -> `[B, 256, S/16, S/16]`.

    Args:
        image_size: side S of the square input, a multiple of `patch_size`.
        embed_dim, depth, num_heads, mlp_ratio, window_size, global_attn_indexes, patch_size, in_chans, out_chans: as in
            SAM.
        experts, rank, fusion, hl_attn: see `Block`.
        gradient_checkpointing: recompute the blocks in the backward pass, which saves memory.
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
        gradient_checkpointing: bool = False,
        **hl_attn: Any,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.experts = tuple(experts)
        self.rank = rank
        self.fusion = fusion
        self.global_attn_indexes = tuple(global_attn_indexes)
        self.gradient_checkpointing = gradient_checkpointing
        grid = image_size // patch_size
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, embed_dim))
        windows = [Windows(grid, 0 if i in self.global_attn_indexes else window_size) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, w, experts, rank, fusion, **hl_attn) for w in windows
        )
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
        return self.neck(self.tokens(x)[0].permute(0, 3, 1, 2))

    def tokens(self, x: Tensor, blocks: Sequence[int] = (-1,)) -> list[Tensor]:
        """Outputs of the given blocks, before the neck: `[B, 3, S, S]` -> for each block `[B, S/16, S/16, dim]`.

        `blocks` are increasing indices; negative ones count from the end.
        """
        wanted = {i % len(self.blocks) for i in blocks}
        outputs = []
        x = self.patch_embed(x) + self.pos_embed
        for i, block in enumerate(self.blocks):
            recompute = self.gradient_checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
            if i in wanted:
                outputs.append(x)
        return outputs

    @torch.no_grad()
    def merge_experts(self) -> None:
        """Merge the experts into the base weights and remove them: the same function at the cost of SAM's encoder."""
        if self.fusion:
            raise InputError("experts that HL-Attn fuses cannot be merged into the base weights")
        for block in cast("list[Block]", list(self.blocks)):
            block.attn.merge_experts()
        self.experts = ()
