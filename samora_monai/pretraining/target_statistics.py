"""Mean and standard deviation of each channel of a teacher's features over the data set.

A LayerNorm makes every token a vector of mean 0 and variance 1, but the tokens of a teacher may still be nearly equal:
then one constant vector, the bias of the student's head, predicts them, and an expert has nothing to learn. After

    t <- (t - mean) / max(std, 0.01 mean of std)

the best constant is zero, with a loss of 1.
"""

from __future__ import annotations

from collections.abc import Iterable

import ignite.distributed as idist
import torch
from torch import Tensor, nn

FLOOR = 0.01  # of a channel's deviation, relative to the mean of all: a channel that hardly varies stays small


class TargetStatistics(nn.Module):
    """Standardise targets by stored statistics, NaN until they are measured.

    Args:
        out_dim: number of channels D.
        parts: 2 for targets whose first token is a pooled vector, with statistics of its own; else 1.
    """

    def __init__(self, out_dim: int, parts: int = 1) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        for name in ("mean", "std"):
            self.register_buffer(name, torch.full((parts, out_dim), torch.nan))

    def forward(self, target: Tensor) -> Tensor:
        """`[B, ..., D]`, `[B, 1 + N, D]` with two parts -> the same, standardised."""
        mean, std = self.mean, self.std
        if len(mean) == 1:
            return (target - mean[0]) / std[0]
        rest = target.shape[1] - 1
        mean, std = (torch.cat([t[:1], t[1:].expand(rest, -1)]) for t in (mean, std))
        return (target - mean) / std

    def measure(self, targets: Iterable[Tensor]) -> None:
        """Set the statistics to those of `targets`, batches as in `forward`, of all processes."""
        parts, dim = self.mean.shape
        sums = torch.zeros(3, parts, dim, dtype=torch.float64)  # of 1, t and t^2
        for target in targets:
            split = [target] if parts == 1 else [target[:, :1], target[:, 1:]]
            for part, values in enumerate(split):
                tokens = values.reshape(-1, dim).double().cpu()
                sums[:, part] += torch.stack([torch.ones_like(tokens), tokens, tokens.square()]).sum(1)
        if idist.get_world_size() > 1:
            sums = torch.as_tensor(idist.all_reduce(sums.to(idist.device()))).cpu()
        count, total, squares = sums
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        self.mean.copy_(mean)
        self.std.copy_(torch.maximum(std, FLOOR * std.mean(1, keepdim=True)))
