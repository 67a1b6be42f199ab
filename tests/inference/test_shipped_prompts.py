"""The weights for prompts that the package ships, on a picture that they were not trained on."""

from __future__ import annotations

from statistics import fmean

import numpy as np
import pytest
from scipy import ndimage

from samora_monai.checkpoints import load_adapter, load_sam
from samora_monai.download import SHIPPED, STAND_IN
from samora_monai.inference.clicks import PromptedSegmenter, SlicePrompts, box_of
from samora_monai.networks import build_segmenter
from samora_monai.synthetic.creatures import FIRST_ORGAN, make_slice


@pytest.fixture(scope="module")
def segmenter() -> PromptedSegmenter:
    net = build_segmenter(STAND_IN, 192, num_classes=4, experts=()).eval()
    load_sam(net, SHIPPED / "tiny.pt")
    load_adapter(net, SHIPPED / "tiny_prompts.pt")
    return PromptedSegmenter(net)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_boxes_and_clicks_find_the_organs_of_a_new_picture(segmenter: PromptedSegmenter):
    image, label = make_slice((77, 0), 160)
    grey = (image.astype(np.float32) + 125) / 400
    boxes, clicks = [], []
    for value in range(FIRST_ORGAN, label.max() + 1):
        organ = label == value
        if organ.sum() < 100:
            continue
        depth = ndimage.distance_transform_edt(organ)
        point = tuple(int(i) for i in np.unravel_index(depth.argmax(), depth.shape))
        boxes.append(dice(segmenter.segment_slice(grey, SlicePrompts(box=box_of(organ)), "a"), organ))
        clicks.append(dice(segmenter.segment_slice(grey, SlicePrompts((point,)), "a"), organ))
    assert len(boxes) > 5 and fmean(boxes) > 0.7 and fmean(clicks) > 0.5
