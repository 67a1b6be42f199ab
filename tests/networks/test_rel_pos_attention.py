"""Both exact forms of SAM's attention against the explicit softmax."""

from __future__ import annotations

import pytest
import torch

from samora_monai.networks.rel_pos_attention import rel_pos_attention


def explicit(q, k, v, rel_pos_h, rel_pos_w):
    """Key by key; q is scaled against k but not against the positions."""
    size = int(q.shape[2] ** 0.5)
    columns = []
    for j in range(size * size):
        rows = torch.stack([rel_pos_h[i // size - j // size + size - 1] for i in range(size * size)])
        cols = torch.stack([rel_pos_w[i % size - j % size + size - 1] for i in range(size * size)])
        columns.append((q * (k[:, :, j : j + 1] * q.shape[-1] ** -0.5 + rows + cols)).sum(-1))
    logits = torch.stack(columns, -1)
    weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
    return weights @ v


@pytest.mark.parametrize("folded", [False, True, None])
@pytest.mark.parametrize(("size", "dim"), [(1, 8), (3, 5), (4, 8), (5, 16)])
def test_values_and_gradients_are_those_of_the_explicit_softmax(size, dim, folded):
    generator = torch.Generator().manual_seed(size)

    def noise(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    q, k, v, direction = (noise(2, 3, size * size, dim) for _ in range(4))
    inputs = q, k, v, noise(2 * size - 1, dim), noise(2 * size - 1, dim)
    got, expected = rel_pos_attention(*inputs, folded), explicit(*inputs)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    for a, b in zip(torch.autograd.grad((got * direction).sum(), inputs),
                    torch.autograd.grad((expected * direction).sum(), inputs), strict=True):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_the_default_agrees_with_itself_on_both_sides_of_the_threshold():
    """14 x 14 tokens (224) and 32 x 32 (512): both forms give the same."""
    for size in (14, 32):
        q, k, v = (torch.randn(1, 2, size * size, 8, dtype=torch.float64) for _ in range(3))
        h, w = (torch.randn(2 * size - 1, 8, dtype=torch.float64) for _ in range(2))
        chosen, *both = (rel_pos_attention(q, k, v, h, w, folded) for folded in (None, False, True))
        for other in both:
            torch.testing.assert_close(chosen, other, rtol=0, atol=1e-12)
