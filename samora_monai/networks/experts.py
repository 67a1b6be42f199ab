"""Low-rank experts on the query and value projections of an encoder block's attention.

LoRA (https://arxiv.org/abs/2106.09685) as in SAMed (https://arxiv.org/abs/2304.13785):

    q = W_q n + B_q A_q n,    v = W_v n + B_v A_v n        (n: normalised tokens of the block; no factor alpha / rank)

Differs from SAMed's code in:
- an expert is added beside the base projection instead of wrapping it, so that SAM's keys stay unchanged;
- the experts of a block share one product for all their A.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = ("image", "patch", "pixel")  # of SAMora; the single expert of SAMed and H-SAM is called "task"


class Expert(nn.Module):
    """Low-rank expert: adds `B_q A_q` to the query and `B_v A_v` to the value projection of an attention.

    Args:
        dim, out_dim: width of the tokens, and of queries and values.
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
        """Initialise A uniformly and B to zero, so that a new expert leaves the output unchanged."""
        for a in (self.linear_a_q, self.linear_a_v):
            nn.init.kaiming_uniform_(a.weight, a=math.sqrt(5))
        for b in (self.linear_b_q, self.linear_b_v):
            nn.init.zeros_(b.weight)

    def deltas(self) -> tuple[Tensor, Tensor]:
        """The products `B_q A_q` and `B_v A_v`, each `[out_dim, dim]`."""
        return self.linear_b_q.weight @ self.linear_a_q.weight, self.linear_b_v.weight @ self.linear_a_v.weight


def add_experts(experts: Sequence[Expert], x: Tensor, q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Add the deltas of all experts of an attention, of any ranks, to the queries and values, in one branch.

    `x` are the tokens `[..., dim]`; `q` and `v` `[..., out_dim]` are from the base projection.
    """
    a_q = torch.cat([e.linear_a_q.weight for e in experts])  # [sum of ranks, dim]
    a_v = torch.cat([e.linear_a_v.weight for e in experts])
    b_q = torch.cat([e.linear_b_q.weight for e in experts], 1)  # [out_dim, sum of ranks]
    b_v = torch.cat([e.linear_b_v.weight for e in experts], 1)
    low_q, low_v = F.linear(x, torch.cat([a_q, a_v])).chunk(2, -1)
    return q + F.linear(low_q, b_q), v + F.linear(low_v, b_v)


def branch_experts(experts: Sequence[Expert], x: Tensor, q: Tensor, v: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Add the deltas of each expert to the queries and values, in one branch per expert; yield q and v of each.

    `x` are the tokens `[N, dim]`; `q` and `v` `[N, out_dim]` are from the base projection. One branch at a time keeps
    the results in memory that the branch before has freed.
    """
    layers = [(e.linear_a_q, e.linear_a_v) for e in experts]
    low = F.linear(x, torch.cat([a.weight for pair in layers for a in pair]))  # [N, 2 * sum of ranks]
    parts = iter(low.split([a.out_features for pair in layers for a in pair], 1))
    for expert, low_q, low_v in zip(experts, parts, parts, strict=True):
        yield torch.addmm(q, low_q, expert.linear_b_q.weight.T), torch.addmm(v, low_v, expert.linear_b_v.weight.T)
