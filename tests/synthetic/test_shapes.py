"""Textured shapes: reproducible, every kind recognisable by its outline, quick to make."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirstd
from scipy import ndimage

from samora_monai.data import CheckCased, LoadCased, find_cases, resolve_class_names
from samora_monai.synthetic import shapes
from samora_monai.synthetic.shapes import BLOB, ELLIPSE, POLYGON, RECTANGLE, RING, make_slice, write_shapes


@pytest.fixture(scope="module")
def pairs():
    return [make_slice((0, k)) for k in range(60)]


def test_folder_is_a_data_set(tmp_path):
    datalist = write_shapes(tmp_path, num_training=2, num_validation=1, slices=6, side=48, seed=2)
    cases = find_cases(tmp_path)
    assert cases.source == str(datalist)
    assert (len(cases.training), len(cases.validation), cases.modality) == (2, 1, "CT")
    names = resolve_class_names(cases)
    assert names == ("background", "ellipse", "polygon", "blob", "ring", "striped rectangle")
    read = Compose([LoadCased(["image", "label"]), EnsureChannelFirstd(["image", "label"])])
    for number, case in enumerate(cases.training + cases.validation, 1):
        item = CheckCased("image", num_classes=len(names))(read(dict(case)))
        assert item["image"].shape == (1, 48, 48, 6)
        for k in range(6):
            image, label = make_slice((2, number, k), 48)
            np.testing.assert_array_equal(item["image"][0, ..., k], image)
            np.testing.assert_array_equal(item["label"][0, ..., k], label)


def test_deterministic_and_varied(pairs):
    for k in (0, 7):
        for one, same in zip(pairs[k], make_slice((0, k)), strict=True):
            np.testing.assert_array_equal(one, same)
    images = np.stack([image for image, _ in pairs]).astype(float)
    assert images.min() >= -125 and images.max() <= 275
    assert min(image.std() for image in images) > 15  # of 400: none is flat
    correlation = np.corrcoef(images.reshape(len(images), -1)) - np.eye(len(images))
    assert np.abs(correlation).mean() < 0.15


def test_classes_are_balanced(pairs):
    labels = np.stack([label for _, label in pairs])
    part = np.bincount(labels.ravel(), minlength=6) / labels.size
    assert 0.5 < part[0] < 0.85
    assert part[1:].min() > 0.02
    kinds = [len(np.unique(label)) - 1 for label in labels]
    assert min(kinds) >= 1 and 2 <= np.mean(kinds) <= 4


def alone(kind, count=40):
    """Masks `[256, 256]` of single shapes that lie wholly in the image."""
    found, seed = [], 0
    while len(found) < count:
        distance, _ = shapes._outline(np.random.default_rng(seed), 256, kind)
        mask, seed = distance < 0, seed + 1
        if not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()):
            found.append(mask)
    return found


def moments(mask):
    """Area, and the area of the ellipse with the same second moments."""
    points = np.argwhere(mask)
    return len(points), 4 * np.pi * np.sqrt(np.linalg.det(np.cov(points.T)))


def test_outlines_match_their_class():
    """Area over that of the ellipse with equal second moments: 1 for an ellipse, 3 / pi for a rectangle, less with
    points and bulges; a ring has a hole."""
    ratio = {kind: np.array([np.divide(*moments(mask)) for mask in alone(kind)]) for kind in range(1, 6)}
    np.testing.assert_allclose(ratio[ELLIPSE], 1, atol=0.01)
    np.testing.assert_allclose(ratio[RECTANGLE], 3 / np.pi, atol=0.015)
    assert ratio[POLYGON].max() < 0.995 and ratio[POLYGON].min() < 0.85
    assert np.median(ratio[BLOB]) < 0.97
    assert ratio[RING].max() < 0.8
    for kind in range(1, 6):
        for mask in alone(kind, 10):
            assert ndimage.label(mask)[1] == 1
            assert ndimage.binary_fill_holes(mask).sum() > mask.sum() * (1.2 if kind == RING else 0.999)


def test_polygons_have_straight_sides():
    """The area inside the polar equation equals the shoelace formula over the corners it was drawn with."""
    for seed in range(20):
        around = np.linspace(0, 2 * np.pi, 20001)[:-1]
        radius = shapes._polygon(np.random.default_rng(seed), around)
        rng = np.random.default_rng(seed)
        star = rng.random() < 0.5
        corners = int(2 * rng.integers(4, 7) if star else rng.integers(3, 7))
        radii = rng.uniform(0.85, 1.25, corners)
        if star:
            radii[::2] *= rng.uniform(0.4, 0.6)
        angles = (np.arange(corners) + rng.uniform(0, 0.4, corners) * (corners > 3)) * 2 * np.pi / corners
        x, y = radii * np.cos(angles), radii * np.sin(angles)
        shoelace = 0.5 * abs(x @ np.roll(y, -1) - y @ np.roll(x, -1))
        np.testing.assert_allclose(0.5 * (radius**2).sum() * 2 * np.pi / 20000, shoelace, rtol=1e-3)


def test_no_threshold_finds_the_shapes(pairs):
    """Levels say little of what is a shape: the best threshold of each image, on either side, finds half of them."""
    best = []
    for image, label in pairs[:20]:
        dice = []
        for threshold in np.percentile(image, range(5, 100, 5)):
            for mask in (image > threshold, image <= threshold):
                dice.append(2 * (mask & (label > 0)).sum() / (mask.sum() + (label > 0).sum()))
        best.append(max(dice))
    assert np.mean(best) < 0.75


def test_time():
    start = time.process_time()
    for k in range(10):
        make_slice(k)
    assert (time.process_time() - start) / 10 < 0.05


def test_command(tmp_path, monkeypatch, capsys):
    command = ["shapes", str(tmp_path), "--training", "1", "--validation", "1", "--slices", "2", "--side", "32"]
    monkeypatch.setattr(sys, "argv", command)
    shapes.main()
    assert capsys.readouterr().out.strip() == str(tmp_path / "dataset.json")
    assert len(find_cases(tmp_path).validation) == 1
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["shapes", str(tmp_path / "file")])
    with pytest.raises(SystemExit, match=r"^cannot write to output folder '.*/file'"):
        shapes.main()
