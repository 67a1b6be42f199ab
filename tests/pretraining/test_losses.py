"""The teachers' losses against slow, literal transcriptions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from samora_monai.pretraining.losses import MaskedReconstructionLoss, NTXentLoss, nt_xent
from samora_monai.pretraining.mae import MAETeacher
from tests.pretraining.small import MAE as SMALL
from tests.tiny import image, refused


def slow_nt_xent(z1, z2, temperature):
    """Equation 1 of SimCLR, one projection after the other."""
    z = [v.tolist() for v in (*z1, *z2)]
    n = len(z1)

    def similarity(a, b):
        dot = sum(p * q for p, q in zip(a, b, strict=True))
        return dot / math.sqrt(sum(p * p for p in a)) / math.sqrt(sum(q * q for q in b))

    total = 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        below = sum(math.exp(similarity(z[i], z[k]) / temperature) for k in range(2 * n) if k != i)
        total += -math.log(math.exp(similarity(z[i], z[j]) / temperature) / below)
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_is_the_papers(temperature):
    z = torch.randn(5, 2, 7, generator=torch.Generator().manual_seed(0)) * 3
    expected = slow_nt_xent(z[:, 0], z[:, 1], temperature)
    assert nt_xent(z[:, 0], z[:, 1], temperature).item() == pytest.approx(expected, rel=1e-6)
    assert NTXentLoss(temperature)(z).item() == pytest.approx(expected, rel=1e-6)
    assert NTXentLoss(temperature)(z, torch.zeros(5)).item() == pytest.approx(expected, rel=1e-6)


def test_nt_xent_of_known_views():
    views = torch.eye(4)[:, None].repeat(1, 2, 1)  # equal views, orthogonal images
    assert NTXentLoss(0.1)(views).item() == pytest.approx(math.log(1 + 6 * math.exp(-10)), rel=1e-3)
    assert NTXentLoss(0.1)(torch.ones(4, 2, 4)).item() == pytest.approx(math.log(7), rel=1e-6)  # all the same
    assert NTXentLoss(0.1)(torch.ones(1, 2, 4)).item() == 0


def test_nt_xent_is_exact_under_autocast_and_has_a_gradient():
    z = torch.randn(16, 2, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = NTXentLoss()(z)
    loss.backward()
    assert torch.isfinite(z.grad).all() and z.grad.abs().max() > 1e-3
    with torch.autocast("cpu", torch.bfloat16):
        assert NTXentLoss()(z).item() == loss.item()


def test_temperature_is_checked():
    with refused("temperature is 0"):
        NTXentLoss(0)


def slow_reconstruction(prediction, mask, x, patch_size, norm_pix):
    """Loops over images, patches and numbers, on the normalised image [B, 3, S, S]."""
    batch, n, _ = prediction.shape
    per_row = x.shape[-1] // patch_size
    total, count = 0.0, 0
    for b in range(batch):
        for i in range(n):
            if not mask[b, i]:
                continue
            top, left = i // per_row * patch_size, i % per_row * patch_size
            patch = [
                x[b, c, top + p, left + q].item()
                for p in range(patch_size)
                for q in range(patch_size)
                for c in range(3)
            ]
            if norm_pix:
                mean = sum(patch) / len(patch)
                variance = sum((v - mean) ** 2 for v in patch) / (len(patch) - 1)
                patch = [(v - mean) / math.sqrt(variance + 1e-6) for v in patch]
            error = [(p - t) ** 2 for p, t in zip(prediction[b, i].tolist(), patch, strict=True)]
            total += sum(error) / len(error)
            count += 1
    return total / count


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_reconstruction_is_maes(norm_pix, channels):
    torch.manual_seed(0)
    x = image(2, channels, 45, 40)
    with torch.no_grad():
        pred = MAETeacher(SMALL).masked(x, 0.6)
    resized = F.interpolate(x, (32, 32), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (resized - mean[:, None, None]) / std[:, None, None]
    expected = slow_reconstruction(*pred, normalised, SMALL["patch_size"], norm_pix)
    assert MaskedReconstructionLoss(norm_pix)(pred, x).item() == pytest.approx(expected, rel=1e-5)
    assert MaskedReconstructionLoss(norm_pix)(pred=pred, target=x.double()).item() == pytest.approx(expected, rel=1e-5)


def test_only_masked_patches_count():
    x, mask = image(1, 1, 32, 32), torch.zeros(1, 16)
    mask[0, 5] = 1
    prediction = torch.zeros(1, 16, 192).requires_grad_()
    loss = MaskedReconstructionLoss()((prediction, mask), x)
    loss.backward()
    assert loss.item() == pytest.approx(191 / 192, rel=1e-3)  # mean square of a patch at unbiased variance 1
    assert prediction.grad.abs().amax((0, 2)).nonzero().flatten().tolist() == [5]
    with torch.autocast("cpu", torch.bfloat16):
        assert MaskedReconstructionLoss()((prediction, mask), x).item() == loss.item()


def test_a_constant_patch_gives_no_nan():
    x, prediction = torch.zeros(1, 1, 32, 32), torch.zeros(1, 16, 192)
    loss = MaskedReconstructionLoss()((prediction, torch.ones(1, 16)), x)
    assert torch.isfinite(loss)
