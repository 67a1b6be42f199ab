"""The weight of each pixel, in the second channel of the label."""

from __future__ import annotations

import pytest
import torch

from samora_monai.losses import SegmentationLoss, build_loss


def draw(decoder: str) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Logits of one stage or two, class numbers (the last class is absent) and weights."""
    generator = torch.Generator().manual_seed(0)
    stages = [torch.randn(3, 5, 8, 8, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    label = torch.randint(0, 4, (3, 1, 32, 32), generator=generator)
    weight = torch.rand(3, 1, 32, 32, generator=generator, dtype=torch.float64)
    return stages[: 1 + (decoder == "hierarchical")], label, weight


@pytest.mark.parametrize("all_processes", [False, True])
@pytest.mark.parametrize("upsample_logits", [False, True])
@pytest.mark.parametrize("decoder", ["sam", "hierarchical"])
def test_weights_of_one_change_nothing(decoder: str, upsample_logits: bool, all_processes: bool):
    stages, label, weight = draw(decoder)
    loss = build_loss(decoder, upsample_logits, all_processes)
    logits = stages if decoder == "hierarchical" else stages[0]
    found = []
    for target in (label, torch.cat([label.double(), torch.ones_like(weight)], 1)):
        value = loss(logits, target)
        found.append((value.detach(), *torch.autograd.grad(value, stages)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-9)


def test_is_the_equation_summed_pixel_by_pixel():
    (logits,), label, weight = draw("sam")
    logits, label, weight = logits[:2, :3, :2, :3], label[:2, :, :2, :3].clamp(max=2), weight[:2, :, :2, :3]
    found = SegmentationLoss(lambda_ce=0.3, lambda_dice=0.7)(logits, torch.cat([label.double(), weight], 1))
    common, sizes, ce, pixels = [0.0] * 3, [0.0] * 3, 0.0, 0
    for b in range(2):
        for row in range(2):
            for column in range(3):
                p = logits[b, :, row, column].softmax(0).tolist()
                true, w = int(label[b, 0, row, column]), float(weight[b, 0, row, column])
                for k in range(3):
                    common[k] += w * p[k] * (k == true)
                    sizes[k] += w * (p[k] ** 2 + (k == true))
                ce -= w * float(torch.tensor(p[true]).log())
                pixels += 1
    dice = sum(1 - (2 * c + 1e-5) / (s + 1e-5) for c, s in zip(common, sizes, strict=True)) / 3
    assert found.item() == pytest.approx(0.7 * dice + 0.3 * ce / pixels, abs=1e-6)


@pytest.mark.parametrize("decoder", ["sam", "hierarchical"])
def test_a_pixel_without_weight_has_no_gradient(decoder: str):
    stages, label, weight = draw(decoder)
    weight[:, :, :16] = 0
    value = build_loss(decoder)(
        stages if decoder == "hierarchical" else stages[0], torch.cat([label.double(), weight], 1)
    )
    for gradient in torch.autograd.grad(value, stages):
        assert not gradient[:, :, :4].any() and gradient[:, :, 4:].all()
