"""Properties of the prompt encoder that the parity tests do not cover."""

from __future__ import annotations

import numpy as np
import torch

from samora_monai.networks.prompt_encoder import PromptEncoder


def test_dense_positions_put_x_before_y():
    net = PromptEncoder(8, 3, 48)
    matrix = net.pe_layer.positional_encoding_gaussian_matrix.double().numpy()
    pe = net.double().get_dense_pe()[0].numpy()
    for i in range(3):
        for j in range(3):
            x, y = (j + 0.5) / 3, (i + 0.5) / 3
            angles = 2 * np.pi * ((2 * x - 1) * matrix[0] + (2 * y - 1) * matrix[1])
            expected = np.concatenate([np.sin(angles), np.cos(angles)])
            np.testing.assert_allclose(pe[:, i, j], expected, rtol=0, atol=1e-12)


def test_positions_keep_their_precision_under_autocast():
    """In bfloat16 an angle of 20 radians is off by up to 0.06."""
    net = PromptEncoder(256, 14, 224)
    points, labels = torch.rand(1, 5, 2) * 224, torch.ones(1, 5)
    plain = net.get_dense_pe(), net((points, labels))[0]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = net.get_dense_pe(), net((points, labels))[0]
    for a, b in zip(plain, mixed, strict=True):
        assert torch.equal(a, b)
