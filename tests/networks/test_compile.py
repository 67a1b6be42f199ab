"""`torch.compile` traces every network, forward and backward, as one graph, and no training step waits for a GPU.

On CPUs the traced operations run as they are (`eager`, `aot_eager`), which shows graph breaks but no gain. The loss is
not compiled: MONAI's `DiceLoss` computes its axes with tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from samora_monai.handlers.training import NanGuard
from samora_monai.inference import AutocastInferer
from samora_monai.losses import HierarchicalLoss, SegmentationLoss
from samora_monai.networks import LEVELS, Segmenter
from tests.tiny import image, tiny, tiny_sam2

SAMORA: dict[str, Any] = {"experts": LEVELS, "fusion": "attention"}
HSAM: dict[str, Any] = {"experts": ("task",), "decoder": "hierarchical", "class_balanced_attention": True}
NETWORKS: dict[str, Callable[[], Segmenter]] = {
    "sam": lambda: tiny(),
    "sam2": lambda: tiny_sam2(),
    "samora": lambda: tiny(**SAMORA),
    "samora_blocks": lambda: tiny(experts=LEVELS, fusion="block"),
    "samora_sam2": lambda: tiny_sam2(**SAMORA),
    "hsam": lambda: tiny(**HSAM),
}
CASES = [("sam", "eager"), *(pytest.param(name, "aot_eager", marks=pytest.mark.slow) for name in NETWORKS)]


def loss_of(net: Segmenter) -> torch.nn.Module:
    return SegmentationLoss() if net.mask_decoder2 is None else HierarchicalLoss()


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_forward_and_backward_are_one_graph(name: str, backend: str):
    """With the loss and the gradients of the network that is not compiled."""
    net, x, label = NETWORKS[name]().train(), image(2, 1, 64, 64), torch.randint(0, 3, (2, 1, 64, 64))
    loss, parameters = loss_of(net), [p for p in net.parameters() if p.requires_grad]
    results = []
    for run in (net, torch.compile(net, fullgraph=True, backend=backend)):
        torch.manual_seed(0)
        value = loss(run(x, label), label)
        results.append([value, *torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)])
    for ours, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, ours, atol=5e-5, rtol=1e-3)  # gradients of about 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step_does_not_wait_for_the_gpu(name: str):
    """Any wait in the second step is an error."""
    net, x, label = NETWORKS[name]().train().cuda(), image(2, 1, 64, 64), torch.randint(0, 3, (2, 1, 64, 64))
    x, label, loss, guard = x.cuda(), label.cuda(), loss_of(net), NanGuard()
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-4)
    inferer = AutocastInferer(amp=True)
    try:
        for iteration, mode in ((1, "default"), (2, "error")):
            torch.cuda.set_sync_debug_mode(mode)
            optimizer.zero_grad()
            value = loss(inferer(x, net, label), label)
            value.backward()
            optimizer.step()
            state: Any = SimpleNamespace(output=[{"loss": value}], iteration=iteration, epoch=1, epoch_length=10)
            guard._completed(SimpleNamespace(state=state))  # type: ignore[arg-type]
    finally:
        torch.cuda.set_sync_debug_mode("default")
