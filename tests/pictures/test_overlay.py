"""Overlays: colours of pixels, orientation, files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from matplotlib.image import imread
from monai.data import MetaTensor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from samora_monai.handlers.tensorboard import OverlayToTensorBoard, TensorBoard
from samora_monai.pictures.overlay import (
    TINT,
    axial_slices,
    class_colors,
    overlay,
    save_overlay_png,
    slice_with_most_classes,
)


def test_prediction_is_a_tint_and_the_reference_a_contour():
    image = np.full((20, 20), 0.5)
    image[0, 0] = 7.0  # clipped
    label, pred = np.zeros((20, 20), int), np.zeros((20, 20), int)
    label[5:12, 5:12] = 1
    pred[6:18, 6:18] = 2
    rgb = overlay(image, label, pred, 3)
    colors = class_colors(3)
    assert rgb.shape == (20, 20, 3) and rgb.dtype == np.uint8
    assert rgb[0, 0].tolist() == [255] * 3
    assert rgb[1, 1].tolist() == [128] * 3
    assert rgb[5, 8].tolist() == np.round(255 * colors[1]).tolist()
    assert rgb[8, 8].tolist() == rgb[15, 15].tolist() == np.round(255 * (0.5 - 0.5 * TINT + TINT * colors[2])).tolist()
    assert overlay(image, None, None, 3)[8, 8].tolist() == [128] * 3


def test_colors_of_ten_classes_differ():
    colors = class_colors(11)
    assert colors[0].tolist() == [0, 0, 0]
    distance = np.abs(colors[1:, None] - colors[None, 1:]).sum(-1) + 9 * np.eye(10)
    assert distance.min() > 0.2
    assert class_colors(30).shape == (30, 3)


def test_slice_with_most_classes_is_the_middle_of_equal_ones():
    label = np.zeros((9, 6, 6), int)
    label[1] = 1  # large, one class
    label[4:7, 0, :2] = (1, 2)
    assert slice_with_most_classes(label) == 5  # middle of three equal ones
    label[6, 1, 1] = 2
    assert slice_with_most_classes(label) == 6
    assert slice_with_most_classes(np.zeros((9, 6, 6))) == 4


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1)])
def test_axial_slices_are_radiological(signs):
    """A mark at the patient's right, front and head is at the left, top and end, for any axes of the file."""
    volume = torch.zeros(1, 6, 5, 4)
    at = [0 if s > 0 else -1 for s in signs]  # index where the coordinate is lowest
    right, front, head = -1 - at[0], -1 - at[1], -1 - at[2]  # RAS coordinates grow to the right, the front, the head
    volume[0, right, front, head] = 1
    slices = axial_slices(MetaTensor(volume, affine=torch.diag(torch.tensor([*signs, 1]).double())))
    assert slices.shape == (4, 5, 6)
    assert np.argwhere(slices).tolist() == [[3, 0, 0]]


def test_png_has_panels_and_a_legend(tmp_path):
    image = np.linspace(0, 1, 64 * 48).reshape(64, 48)
    label = np.zeros((64, 48), int)
    label[20:40, 10:30] = 2
    path = tmp_path / "new" / "a.png"
    save_overlay_png(path, image, label, label, ("background", "liver", "spleen"))
    picture = imread(path)[..., :3]
    assert picture.shape[1] == 3 * 480
    spleen = class_colors(3)[2]
    assert (np.abs(picture - spleen).sum(-1) < 0.03).sum() > 100  # contour and legend
    save_overlay_png(path, image, label, None, ("background", "liver", "spleen"))
    assert imread(path).shape[1] == 2 * 480


def test_tensorboard_gets_one_picture_per_validation(tmp_path):
    image = MetaTensor(torch.full((1, 8, 6, 4), 0.5))
    label = MetaTensor(torch.zeros(1, 8, 6, 4))
    label[0, 2:5, 2:5, 3] = 1
    engine: Any = Engine(lambda engine, batch: [{"image": image, "label": label, "pred": label}])
    tensorboard = TensorBoard(tmp_path)
    OverlayToTensorBoard(tensorboard).attach(engine)
    engine.run([0, 1, 2])
    tensorboard.writer.flush()
    events = EventAccumulator(str(tmp_path)).Reload()
    (event,) = events.Images("validation/overlay")
    assert (event.step, event.width, event.height) == (1, 8, 6)
