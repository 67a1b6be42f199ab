"""Prompts in slices and their spread to neighbouring ones, against the network's own call for prompts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage

from samora_monai.inference.clicks import PromptedSegmenter, SlicePrompts, box_of, with_draft
from samora_monai.networks import Segmenter
from tests.tiny import refused, tiny, tiny_sam2

H, W = 48, 96  # the network's input is 64 x 64


def segmenter(build: Callable[..., Segmenter] = tiny) -> PromptedSegmenter:
    return PromptedSegmenter(build(64, num_classes=4, experts=()).eval())


@pytest.fixture
def slice_() -> np.ndarray:
    return np.random.default_rng(0).random((H, W), np.float32)


def by_hand(net: Segmenter, image: np.ndarray, **prompts: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
    """The network's own answer for prompts in pixels of its input."""
    square = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None, None], (64, 64), mode="bilinear", align_corners=False, antialias=True
    )[0]
    with torch.no_grad():
        answer = net.predict_masks([{"image": square, "original_size": (H, W), **prompts}], False)[0]
    return answer["mask_logits"][0, 0].numpy() > 0, answer["low_res_logits"]


@pytest.mark.parametrize("build", [tiny, tiny_sam2])
def test_point_and_box_are_those_of_the_network(build: Callable[..., Segmenter], slice_: np.ndarray):
    """Voxel (12, 33) of 48 x 96 is centred at row 12.5 * 64 / 48 and column 33.5 * 64 / 96 of the input."""
    prompted = segmenter(build)
    x, y = 33.5 * 64 / 96 - 0.5, 12.5 * 64 / 48 - 0.5
    box = torch.tensor([[24 * 64 / 96 - 0.5, 6 * 64 / 48 - 0.5, 48 * 64 / 96 - 0.5, 24 * 64 / 48 - 0.5]])
    points = {"point_coords": torch.tensor([[[x, y]]]), "point_labels": torch.ones(1, 1)}
    expected = by_hand(prompted.net, slice_, **points, boxes=box)[0]
    got = prompted.segment_slice(slice_, SlicePrompts(((12, 33),), box=(6, 24, 23, 47)), "a")
    assert np.array_equal(got, expected) and 0 < expected.sum() < expected.size


def test_each_further_point_gets_the_answer_before_it(slice_: np.ndarray):
    prompted = segmenter()
    x, y = [33.5 * 64 / 96 - 0.5, 50.5 * 64 / 96 - 0.5], [12.5 * 64 / 48 - 0.5, 40.5 * 64 / 48 - 0.5]
    points, labels = torch.tensor([list(zip(x, y, strict=True))]), torch.tensor([[1.0, 0.0]])
    first = by_hand(prompted.net, slice_, point_coords=points[:, :1], point_labels=labels[:, :1])[1]
    expected = by_hand(prompted.net, slice_, point_coords=points, point_labels=labels, mask_inputs=first)[0]
    got = prompted.segment_slice(slice_, SlicePrompts(((12, 33),), ((40, 50),)), "a")
    assert np.array_equal(got, expected)


def test_a_draft_is_a_mask_prompt(slice_: np.ndarray):
    prompted = segmenter()
    draft = np.zeros((H, W), np.uint8)
    draft[12:36, 24:72] = 7  # rows 4 to 11 and columns 4 to 11 of the 16 x 16 mask prompt
    logits = torch.full((1, 1, 16, 16), -7.0)
    logits[..., 4:12, 4:12] = 7
    at = prompted._mask_prompt(draft)
    assert torch.equal(at.sign(), logits.sign())
    torch.testing.assert_close(at[..., 5:11, 5:11], logits[..., 5:11, 5:11])
    torch.testing.assert_close(at[..., :2, :], logits[..., :2, :])
    expected = by_hand(prompted.net, slice_, mask_inputs=at)[0]
    assert np.array_equal(prompted.segment_slice(slice_, SlicePrompts(draft=draft), "a"), expected)


def test_a_slice_is_embedded_once_and_the_oldest_is_forgotten(slice_: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    prompted, calls = segmenter(), []
    prompted.remembered = 2
    embed = prompted.net.embed
    monkeypatch.setattr(prompted.net, "embed", lambda images: calls.append(1) or embed(images))
    for name, count in (("a", 1), ("a", 1), ("b", 2), ("a", 2), ("c", 3), ("a", 3), ("b", 4)):
        prompted.segment_slice(slice_, SlicePrompts(((1, 1),)), name)
        assert len(calls) == count, name


def test_what_tells_nothing_is_refused(slice_: np.ndarray):
    prompted, volume = segmenter(), np.zeros((H, W, 3), np.float32)
    with refused("a point outside alone does not tell what to segment"):
        prompted.segment(volume, {1: SlicePrompts(negative=((1, 1),))}, "a")
    with refused("the prompts are in slice 3, but the scan has slices 0 to 2"):
        prompted.segment(volume, {3: SlicePrompts(((1, 1),))}, "a")
    with refused("point (48, 1) is outside of the slice of 48 x 96 voxels"):
        prompted.segment_slice(slice_, SlicePrompts(((48, 1),)), "a")


class Bright(PromptedSegmenter):
    """Takes the bright part that a point is in, or in a box most of it, in place of a network."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def segment_slice(self, image, prompts, name):
        self.asked.append(name[1])
        parts, _ = ndimage.label(image > 0.5)
        if prompts.positive:
            row, column = (int(value) for value in prompts.positive[0])
            return (parts == parts[row, column]) & (parts > 0)
        first_row, first_column, last_row, last_column = (max(0, int(value)) for value in prompts.box)
        inside = parts[first_row : last_row + 1, first_column : last_column + 1]
        counts = np.bincount(inside.ravel(), minlength=2)
        counts[0] = 0
        return (parts == counts.argmax()) & bool(counts.max())


@pytest.fixture
def tube() -> np.ndarray:
    """A bright tube that moves a voxel a slice, from slice 3 to 12 of 16."""
    volume = np.zeros((40, 40, 16), np.float32)
    for z in range(3, 13):
        volume[8 + z : 16 + z, 10:20, z] = 1
    return volume


def test_an_object_is_followed_to_both_ends(tube: np.ndarray):
    found = Bright().segment(tube, {7: SlicePrompts(((19, 14),))}, "a", reach=20)
    assert found.dtype == np.uint8 and np.array_equal(found, tube > 0.5)


def test_nothing_spreads_from_an_empty_mask(tube: np.ndarray):
    prompted = Bright()
    assert not prompted.segment(tube, {7: SlicePrompts(((1, 1),))}, "a", reach=20).any() and prompted.asked == [7]


def test_the_reach_limits_the_slices(tube: np.ndarray):
    prompts = {7: SlicePrompts(((19, 14),))}
    for reach, slices in ((0, {7}), (2, set(range(5, 10))), (range(6, 12), set(range(6, 12)))):
        found = Bright().segment(tube, prompts, "a", reach)
        assert set(np.flatnonzero(found.any((0, 1)))) == slices


def test_slices_between_two_prompts_are_filled_from_the_nearer_one(tube: np.ndarray):
    prompted = Bright()
    found = prompted.segment(tube, {5: SlicePrompts(((17, 14),)), 10: SlicePrompts(((22, 14),))}, "a")
    assert set(np.flatnonzero(found.any((0, 1)))) == set(range(5, 11))
    assert prompted.asked == [5, 10, 6, 7, 9, 8]


def test_an_object_ends_where_the_next_mask_is_elsewhere(tube: np.ndarray):
    tube[..., 9:] = 0
    tube[30:34, 8:12, 9:] = 1  # another object that touches the box
    tube[14:30, 24:30, 9:] = 1
    found = Bright().segment(tube, {7: SlicePrompts(((19, 14),))}, "a", reach=20)
    assert found[..., 8].any() and not found[..., 9:].any()


def test_a_draft_is_added_where_it_is_not_empty():
    draft = np.zeros((4, 4, 3))
    draft[1, 1, 2] = 1
    prompts = with_draft({0: SlicePrompts(((1, 1),)), 2: SlicePrompts(((2, 2),))}, draft)
    assert prompts[0].draft is None and prompts[2].positive == ((2, 2),) and prompts[2].draft[1, 1] == 1
    assert box_of(draft[..., 2], 1) == (0, 0, 2, 2)
