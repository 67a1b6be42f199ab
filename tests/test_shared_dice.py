"""In one process the shared Dice is MONAI's; tests/bundles compare the gradient of two processes with that of one."""

from __future__ import annotations

import pytest
import torch

from samora_monai.losses import build_loss


@pytest.mark.parametrize("upsample_logits", [False, True])
@pytest.mark.parametrize("decoder", ["sam", "hierarchical"])
def test_loss_of_one_process(decoder: str, upsample_logits: bool):
    generator = torch.Generator().manual_seed(0)
    stages = [torch.randn(3, 5, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2)]
    label = torch.randint(0, 4, (3, 1, 32, 32), generator=generator)  # the last class is absent
    losses = []
    for all_processes in (False, True):
        logits = [stage.clone().requires_grad_() for stage in stages]
        loss = build_loss(decoder, upsample_logits, all_processes)
        value = loss(logits if decoder == "hierarchical" else logits[0], label)
        value.backward()
        losses.append((value.detach(), logits[0].grad))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-9)
