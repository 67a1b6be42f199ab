"""The cases and slices that a report shows, and their pictures."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from samora_monai.metrics import case_metrics
from samora_monai.pictures.overlay import TINT, class_colors
from samora_monai.report.case_pictures import SIDE, case_pictures
from samora_monai.report.case_slices import CaseSlice, SliceStore, select_slices
from samora_monai.report.class_summary import worst_median_best

NAN = float("nan")


def volumes():
    """Image, label and prediction [1, X, Y, Z], the feet at the end of Z, the right at the start of X.

    Class 1 has false voxels in one slice; class 2, lower in Dice, misses 3 voxels in the lowest slice.
    """
    label, pred = torch.zeros(1, 10, 8, 6), torch.zeros(1, 10, 8, 6)
    label[0, 1:5, 1:5, 1:4] = 1
    pred[0, 1:5, 1:5, 1:4] = 1
    pred[0, 1:5, 5, 2] = 1  # the largest error, but not of the class with the lowest Dice
    label[0, 7:9, 2:4, 3:6] = 2
    pred[0, 7:9, 2:4, 3:5] = 2
    pred[0, 7, 2, 5] = 2
    affine = torch.diag(torch.tensor([1.0, 2.0, -3.0, 1.0]))
    image = torch.linspace(-1, 2, 480).reshape(1, 10, 8, 6)
    return [MetaTensor(volume, affine=affine) for volume in (image, label, pred)]


def slices_of(image, label, pred, num_classes=3):
    return select_slices(image, label, pred, case_metrics(pred[0], label[0], num_classes, (1, 2, 3)))


def test_slices_show_the_organs_and_the_largest_error_of_the_lowest_class():
    image, label, pred = volumes()
    organs, error = slices_of(image, label, pred)
    assert (organs.number, organs.total, organs.pixel_mm, organs.classes) == (3, 6, (2.0, 1.0), ())
    assert (error.number, error.classes, error.differing) == (1, (2,), 3)
    # rows from the front, columns from the patient's right
    expected = label[0, :, :, 5].numpy()[::-1, ::-1].T
    assert error.label.dtype == np.uint8 and np.array_equal(error.label, expected)
    assert np.count_nonzero(error.label != error.pred) == 3
    grey = np.clip(image[0, :, :, 5].numpy()[::-1, ::-1].T, 0, 1)
    assert np.array_equal(error.image, np.round(255 * grey).astype(np.uint8))
    assert error.label.base is None  # not a view that keeps the volume


def test_slices_of_a_perfect_case_and_of_a_missed_class():
    image, label, _ = volumes()
    organs, error = slices_of(image, label, label)
    assert error.number == organs.number and (error.classes, error.differing) == ((1, 2), 0)
    pred = label.clone()
    pred[pred == 2] = 0
    assert slices_of(image, label, pred).error.classes == (2,)
    image[0, 0, 0] = NAN
    assert slices_of(image, label, pred).organs.image.min() == 0


@pytest.mark.parametrize(
    ("scores", "places"),
    [
        ({}, {}),
        ({"a": NAN}, {}),
        ({"a": 0.5, "n": NAN}, {"only": "a"}),
        ({"a": 0.5, "b": 0.4}, {"worst": "b", "best": "a"}),
        ({"a": 0.5, "b": 0.5, "c": 0.5}, {"worst": "a", "median": "b", "best": "c"}),
        ({"a": 0.9, "b": 0.1, "c": 0.3, "n": NAN, "d": 0.5}, {"worst": "b", "median": "c", "best": "a"}),
    ],
)
def test_worst_median_and_best_case(scores, places):
    assert worst_median_best(scores) == places
    assert list(worst_median_best(scores)) == list(places)


def test_store_keeps_nothing_in_memory_and_leaves_nothing(tmp_path):
    store = SliceStore(tmp_path)
    image, label, pred = volumes()
    first, second = slices_of(image, label, pred), slices_of(image, label, label)
    store["a"], store["b"] = first, second
    assert np.array_equal(store["a"].error.pred, first.error.pred) and store["b"].organs.number == second.organs.number
    assert "a" in store and "c" not in store
    assert list(tmp_path.iterdir()) == []
    store.close()


def decoded(uri: str) -> np.ndarray:
    head, data = uri.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_pictures_have_square_pixels():
    label, pred = np.zeros((40, 20), np.uint8), np.zeros((40, 20), np.uint8)
    label[10:20, 5:10] = 1
    pred[10:30, 5:10] = 12  # colours repeat after ten classes
    shown = CaseSlice(np.full((40, 20), 51, np.uint8), label, pred, 1, 1, (1.0, 4.0))
    pictures = case_pictures(shown, 13)
    assert (pictures["width"], pictures["height"]) == (SIDE, SIDE // 2)
    scan, reference, prediction = (decoded(str(pictures[name])) for name in ("scan", "reference", "prediction"))
    assert scan.shape == (SIDE // 2, SIDE, 3) and np.unique(scan).tolist() == [51]
    colors = class_colors(13)
    tinted = [np.round(255 * (0.2 * (1 - TINT) + TINT * colors[index])) for index in (1, 12)]
    inside, below = (120, 240), (200, 240)  # rows 10 to 20 are 80 to 160, columns 5 to 10 are 160 to 320
    assert reference[inside].tolist() == tinted[0].tolist() and reference[below].tolist() == [51] * 3
    assert prediction[inside].tolist() == prediction[below].tolist() == tinted[1].tolist()
    assert prediction[120, 160].tolist() == np.round(255 * colors[1]).tolist()  # the outline of the reference
    white = np.argwhere((prediction == 255).all(-1))
    assert white[:, 1].min() >= 320 and white[:, 1].max() < 360  # the number, to the right of the region
