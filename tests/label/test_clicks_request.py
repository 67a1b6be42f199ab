"""Prompts in the requests of 3D Slicer and OHIF, as their code sends them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.label.modules import label_module
from tests.tiny import refused

prompts_of = label_module("clicks_request").prompts_of
SHAPE = (40, 50, 20)


def test_slicer_asks_for_the_slice_of_the_last_point():
    request = {"label": "liver", "foreground": [[3, 4, 9], [5, 6, 7]], "background": [[8, 9, 7]], "slice": 7}
    prompts, slices = prompts_of(request, SHAPE, axis=2, one_slice=True)
    assert slices is None and list(prompts) == [7]
    assert prompts[7].positive == ((5, 6),) and prompts[7].negative == ((8, 9),) and prompts[7].box is None


def test_ohif_sends_points_of_one_slice_and_no_label():
    prompts, _ = prompts_of({"foreground": [], "background": [[8, 9, 0]]}, SHAPE, axis=2, one_slice=True)
    assert prompts[0].negative == ((8, 9),) and not prompts[0]


def test_points_of_all_slices_count_in_three_dimensions():
    request = {"foreground": [[3, 4, 9], [5, 6, 7]], "background": [[8, 9, 7], [1, 1, 2]]}
    prompts, _ = prompts_of(request, SHAPE, axis=2, one_slice=False)
    assert sorted(prompts) == [2, 7, 9] and prompts[9].positive == ((3, 4),) and not prompts[2]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_along_other_axes(axis: int):
    prompts, slices = prompts_of({"foreground": [[3, 4, 9]], "roi": [1, 5, 2, 6, 3, 10]}, SHAPE, axis, one_slice=True)
    point, box = [3, 4, 9], [(1, 5), (2, 6), (3, 10)]
    index = point.pop(axis)
    assert slices == range(box[axis][0], box.pop(axis)[1] + 1)
    assert prompts[index].positive == (tuple(point),)
    assert prompts[index].box == (box[0][0], box[1][0], box[0][1], box[1][1])


def test_a_box_of_slicer_may_have_its_ends_in_any_order_and_leave_the_image():
    prompts, slices = prompts_of({"roi": [30, -5, 12, 60, 9, 3]}, SHAPE, axis=2, one_slice=False)
    assert slices == range(3, 10) and list(prompts) == [6] and prompts[6].box == (0, 12, 30, 49)


@pytest.mark.parametrize(("given", "chosen"), [(4, 4), (87, 6), (None, 6)])
def test_a_slice_outside_of_the_box_is_a_position_in_mm(given: int | None, chosen: int):
    prompts, _ = prompts_of({"roi": [3, 9, 3, 9, 3, 9], "slice": given}, SHAPE, axis=2, one_slice=True)
    assert list(prompts) == [chosen]


def test_points_outside_of_the_box_do_not_count_in_three_dimensions():
    request = {"foreground": [[3, 4, 5], [3, 4, 15]], "roi": [0, 9, 0, 9, 3, 9]}
    prompts, _ = prompts_of(request, SHAPE, axis=2, one_slice=False)
    assert list(prompts) == [5] and prompts[5].box == (0, 0, 9, 9)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"foreground": [[3, 4]]}, "foreground must be a list of voxels [i, j, k]"),
        ({"foreground": "../../x"}, "foreground must be a list of voxels [i, j, k]"),
        ({"background": [[1, 2, float("nan")]]}, "background must be a list of voxels"),
        ({"background": [[1, 2, True]]}, "background must be a list of voxels"),
        ({"foreground": [[40, 4, 4]]}, "foreground has the point [40, 4, 4], outside of the image of [40, 50, 20]"),
        ({"foreground": [[-1, 4, 4]]}, "outside of the image"),
        ({"foreground": [[1, 1, 1]] * 201}, "got 201 points, expected at most 200"),
        ({"roi": [1, 2, 3, 4]}, "roi must be six numbers"),
        ({"roi": [50, 60, 3, 4, 1, 2]}, "outside of the image"),
    ],
)
def test_other_values_are_refused(request_: dict[str, Any], words: str):
    with refused(words):
        prompts_of(request_, SHAPE, axis=2, one_slice=True)
