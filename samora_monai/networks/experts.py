"""Low-rank experts on the query and value projections of an encoder block's attention.

LoRA (https://arxiv.org/abs/2106.09685) as SAMed (https://arxiv.org/abs/2304.13785) uses it:

    q = W_q n + B_q A_q n,    v = W_v n + B_v A_v n        (n the block's normalised tokens; no alpha / rank factor)

Differs from SAMed's code in:
- an expert stands beside the base projection instead of wrapping it, so SAM's keys stay as they are;
- several experts of a block are applied by one batched product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = ("image", "patch", "pixel")  # SAMora's levels; SAMed's and H-SAM's single expert is called "task"


class Expert(nn.Module):
    """One low-rank expert of one attention: `B_q A_q` on the queries and `B_v A_v` on the values.

    Args:
        dim: width of the tokens.
        out_dim: width of queries and values.
        rank: rank r of both products.
    """

    def __init__(self, dim: int, out_dim: int, rank: int) -> None:
        super().__init__()
        self.linear_a_q = nn.Linear(dim, rank, bias=False)
        self.linear_b_q = nn.Linear(rank, out_dim, bias=False)
        self.linear_a_v = nn.Linear(dim, rank, bias=False)
        self.linear_b_v = nn.Linear(rank, out_dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A uniform, B zero: a new expert says nothing."""
        for a in (self.linear_a_q, self.linear_a_v):
            nn.init.kaiming_uniform_(a.weight, a=math.sqrt(5))
        for b in (self.linear_b_q, self.linear_b_v):
            nn.init.zeros_(b.weight)

    def deltas(self) -> tuple[Tensor, Tensor]:
        """The products `B_q A_q` and `B_v A_v`, each `[out_dim, dim]`."""
        return self.linear_b_q.weight @ self.linear_a_q.weight, self.linear_b_v.weight @ self.linear_a_v.weight


def add_experts(experts: Sequence[Expert], x: Tensor, q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """One branch: the sum of all experts' deltas on queries and values.

    Args:
        experts: experts of one attention, of any ranks.
        x: `[..., dim]` tokens; q, v: `[..., out_dim]` from the base projection.
    """
    a_q = torch.cat([e.linear_a_q.weight for e in experts])  # [sum of ranks, dim]
    a_v = torch.cat([e.linear_a_v.weight for e in experts])
    b_q = torch.cat([e.linear_b_q.weight for e in experts], 1)  # [out_dim, sum of ranks]
    b_v = torch.cat([e.linear_b_v.weight for e in experts], 1)
    low_q, low_v = F.linear(x, torch.cat([a_q, a_v])).chunk(2, -1)
    return q + F.linear(low_q, b_q), v + F.linear(low_v, b_v)


def branch_experts(experts: Sequence[Expert], x: Tensor, q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """One branch per expert.

    Args:
        experts: L experts of one attention, of one rank.
        x: `[B, h, w, dim]` tokens; q, v: `[B, h, w, out_dim]` from the base projection, computed once for all.

    Returns:
        queries and values, each `[L * B, h, w, out_dim]`, expert-major.
    """
    a = torch.cat([w for e in experts for w in (e.linear_a_q.weight, e.linear_a_v.weight)])  # [2 L r, dim]
    low = F.linear(x, a).reshape(-1, len(experts), 2, a.shape[0] // (2 * len(experts)))
    low_q, low_v = low.permute(2, 1, 0, 3)  # each [L, tokens, r]
    b_q = torch.stack([e.linear_b_q.weight.T for e in experts])  # [L, r, out_dim]
    b_v = torch.stack([e.linear_b_v.weight.T for e in experts])
    base_q, base_v = (t.reshape(1, -1, t.shape[-1]).expand(len(experts), -1, -1) for t in (q, v))
    branches = (len(experts) * q.shape[0], *q.shape[1:])
    return torch.baddbmm(base_q, low_q, b_q).reshape(branches), torch.baddbmm(base_v, low_v, b_v).reshape(branches)
