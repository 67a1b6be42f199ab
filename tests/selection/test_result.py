"""What a selection tells: lines, table, contact sheet."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from samora_monai.selection import Choice, ScanFeatures, Selection
from samora_monai.selection.contact_sheet import LARGE, MOST, SMALL
from tests.tiny import refused


def selection(count: int = 6) -> Selection:
    """Scans 0 and 1 chosen, 4 labelled, 5 for validation; pictures with the number of the scan as grey value."""
    at = np.array([[0, 0], [5, 0], [0, 1], [0, 2], [9, 9], [0, 0], *[[0, 3]] * (count - 6)], float)
    features = [ScanFeatures(np.zeros((1, 1)), np.full((10, 20), (i + 1) / 8), (40.0, 20.0)) for i in range(count)]
    choices = [Choice(0, (0, 2, *range(6, count)), passed_over=((3, 4),)), Choice(1, (1,), outside=True)]
    names = [f"images/{i}.nii.gz" for i in range(count)]
    return Selection(names, [f"p{i}" for i in range(count)], features, at, [4], [5], choices)


def test_each_unlabelled_scan_has_one_that_stands_for_it():
    """Scan 3 is in no chosen cluster, and nearest to scan 0."""
    found = selection()
    assert found.represented_by == {0: 0, 1: 1, 2: 0, 3: 0}
    assert found.stood_for(0) == [0, 2, 3]


def test_the_lines_say_why():
    first, second, labelled = selection().lines()
    assert first.endswith(
        "1. images/0.nii.gz  stands for 3 of 4: in the middle of its cluster; instead of images/3.nii.gz "
        "(patient of images/4.nii.gz)"
    )
    assert second.endswith("stands for 1 of 4: farthest from all others of patients who have no label yet")
    assert labelled == "the 1 labelled scans stand for 0 of 4"


def test_the_table_has_a_row_for_each_scan(tmp_path: Path):
    selection().write_table(tmp_path / "select.csv")
    with open(tmp_path / "select.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["order"] for row in rows] == ["1", "2", "", "", "", ""]
    assert [row["scan"][7] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    assert [row["stands_for"] for row in rows] == ["3", "1", "", "", "0", ""]
    assert [row["distance"] for row in rows] == ["0.000", "0.000", "1.000", "2.000", "", ""]
    assert rows[3]["why"] == "like images/0.nii.gz"
    assert [row["why"] for row in rows[4:]] == ["labelled", "labelled, for validation"]


def test_the_contact_sheet_shows_each_scan_in_its_proportions(tmp_path: Path):
    selection().write_sheet(tmp_path / "select.png")
    grey = np.asarray(Image.open(tmp_path / "select.png").convert("L"))
    for scan, side in ((0, LARGE), (1, LARGE), (2, SMALL), (3, SMALL), (4, SMALL)):
        area = (grey == round(255 * (scan + 1) / 8)).sum()
        assert side * side / 2 <= area < 1.1 * side * side / 2  # letters have a few pixels of any grey
    assert (grey == round(255 * 6 / 8)).sum() < 100, "the validation scan is not shown"


def test_a_large_cluster_is_cut(tmp_path: Path):
    sizes = []
    for count in (6 + MOST, 6 + 4 * MOST):
        selection(count).write_sheet(tmp_path / "select.png")
        sizes.append(Image.open(tmp_path / "select.png").size)
    assert sizes[0][0] == sizes[1][0]
    assert sizes[1][1] - sizes[0][1] < SMALL


def test_results_that_cannot_be_written_are_one_sentence(tmp_path: Path):
    (tmp_path / "file").touch()
    for write in (selection().write_table, selection().write_sheet):
        with refused("cannot write", "--output"):
            write(tmp_path / "file" / "result")
