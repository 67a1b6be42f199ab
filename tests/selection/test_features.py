"""Local features of scans, and their embedding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from samora_monai.networks import Segmenter
from samora_monai.selection import embed, scan_features
from samora_monai.selection.features import SLICES
from tests.tiny import image, tiny, tiny_sam2


def volume(*shape: int, seed: int = 0, spacing: tuple[float, float, float] = (1, 1, 1)) -> MetaTensor:
    return MetaTensor(image(1, *shape, seed=seed), affine=torch.diag(torch.tensor([*spacing, 1.0])))


@pytest.mark.parametrize("build", [tiny, tiny_sam2], ids=["sam", "sam2"])
def test_a_cell_is_the_mean_of_the_tokens_over_its_tissue(build):
    """One slice of 64 pixels has 4 x 4 tokens, so that each token is a cell in its plane."""
    net = build(64).eval()
    scan = volume(64, 64, 1)
    tissue = torch.ones(1, 64, 64, 1)
    tissue[:, :16] = 0  # the first row of tokens is air
    scan = scan * tissue
    cells = scan_features(scan, net).cells.reshape(4, 4, 4, -1)  # depth, X, Y
    with torch.no_grad():
        tokens = net.image_encoder.distilled(net.preprocess(scan.as_tensor().movedim(-1, 0)))[0].movedim(0, -1)
    assert np.isnan(cells[:, 0]).all()
    for depth in cells:  # a single slice fills the depth
        np.testing.assert_allclose(depth[1:], tokens[1:], rtol=1e-4, atol=1e-5)


def test_the_time_of_a_scan_does_not_grow_with_its_slices():
    net = tiny(64).eval()
    seen = []
    encode = net.image_encoder.distilled
    net.image_encoder.distilled = lambda x: (seen.append(len(x)), encode(x))[1]
    scan_features(volume(20, 20, 100), net)
    assert sum(seen) == SLICES


def test_the_picture_is_the_upright_slice_in_the_middle_of_the_content():
    scan = volume(8, 12, 9, spacing=(2, 1, 5))
    scan[..., 5:] = 0  # content in slices 0 to 4
    found = scan_features(scan, tiny(64).eval())
    np.testing.assert_array_equal(found.picture, scan[0, ..., 2].numpy()[::-1, ::-1].T)
    assert found.extent == (16, 12)


def test_similarities_are_cosines_of_standardised_features():
    """Few scans have few components, which the variance that is left out changes little."""
    rng = np.random.default_rng(0)
    cells = [rng.normal(5, 100, (600, 3)) for _ in range(4)]
    cells[3] = 2 * cells[2] - np.mean(cells[:3], 0)  # in the direction of another scan
    x = np.stack(cells) - np.mean(cells, 0)
    x = (x / x.std((0, 1))).reshape(4, -1)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    embedded = embed(cells)
    np.testing.assert_allclose(embedded @ embedded.T, x @ x.T, atol=0.25)
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1)


def test_cells_without_tissue_do_not_separate_scans():
    rng = np.random.default_rng(0)
    cells = [rng.normal(size=(6, 3)) for _ in range(5)]
    cells.append(cells[0].copy())
    cells[-1][2] = np.nan
    embedded = embed(cells)
    assert np.isfinite(embedded).all()
    others = [np.linalg.norm(embedded[0] - other) for other in embedded[1:-1]]
    assert np.linalg.norm(embedded[0] - embedded[-1]) < min(others) / 2


def test_equal_scans_are_at_one_point():
    assert not embed([np.ones((6, 3))] * 4).any()


def test_the_experts_take_part():
    scan = volume(32, 32, 4)
    one, other = (tiny(64, experts=experts).eval() for experts in ((), ("patch",)))
    assert isinstance(one, Segmenter)
    state = {key: value for key, value in other.state_dict().items() if key in one.state_dict()}
    one.load_state_dict(state)
    assert not np.allclose(scan_features(scan, one).cells, scan_features(scan, other).cells)
