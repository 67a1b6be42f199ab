"""Positions of the parts of box plots."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from samora_monai.report.box_plots import axis, box_plot, scale_end


def shapes(svg: str, kind: str) -> list[dict[str, str]]:
    return [element.attrib for element in ElementTree.fromstring(svg) if element.get("class") == kind]


def at(value: float, end: float) -> str:
    return f"{2 + 96 * value / end:.2f}%"


@pytest.mark.parametrize(
    ("values", "end"), [([], 1), ([0, 0], 1), ([0.3], 0.4), ([87.8], 100), ([10], 10), ([12, 3], 20), ([1234], 2000)]
)
def test_scale_ends_at_a_round_number(values, end):
    assert scale_end(values) == pytest.approx(end)


def test_box_whiskers_and_dots_are_tukeys():
    svg = box_plot([1, 2, 3, 4, 5, 6, 7, 20], 25, "HD95 of <liver>")
    (box,), (median,), left_right = shapes(svg, "box"), shapes(svg, "median"), shapes(svg, "whisker")
    # quartiles 2.75, 4.5 and 6.25; reach 5.25
    assert (box["x"], box["width"]) == (at(2.75, 25), f"{96 * 3.5 / 25:.2f}%")
    assert median["x1"] == median["x2"] == at(4.5, 25)
    assert [(line["x1"], line["x2"]) for line in left_right] == [(at(1, 25), at(2.75, 25)), (at(6.25, 25), at(7, 25))]
    assert [dot["cx"] for dot in shapes(svg, "dot")] == [at(20, 25)]
    label = ElementTree.fromstring(svg).get("aria-label")
    assert label == "HD95 of <liver>: 8 values from 1 to 20, median 4.5, quartiles 2.75 and 6.25"


def test_few_values_are_dots():
    svg = box_plot([0.5, 1.0, 0.5], 1.0, "Dice")
    assert not shapes(svg, "box") and [dot["cx"] for dot in shapes(svg, "dot")] == ["50.00%", "98.00%", "50.00%"]


def test_equal_values_have_no_box_width():
    svg = box_plot([0.5] * 9, 1.0, "Dice")
    assert shapes(svg, "box")[0]["width"] == "0.00%" and not shapes(svg, "dot")


def test_axis_labels_start_middle_and_end():
    assert re.findall(r">([\d.]+)<", axis(25.0)) == ["0", "12.5", "25"]
