"""Names of the segments of a DICOM SEG, where an organ is absent."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from tests.label.server import ROOT

CLASSES = {1: "spleen", 2: "right kidney", 3: "left kidney", 4: "liver"}
ALL = [{"name": name, "color": [value, 0, 0]} for value, name in CLASSES.items()]


def names(values: list[int], entries: list[dict[str, Any]]) -> list[str]:
    spec = importlib.util.spec_from_file_location("samora_segments", ROOT / "label" / "modules" / "samora_segments.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [entry["name"] for entry in module.entries_by_value(values, entries, CLASSES)]


@pytest.mark.parametrize(
    ("values", "entries", "expected"),
    [
        ([1, 3, 4], ALL, ["spleen", "left kidney", "liver"]),  # all segments, one of them empty
        ([2], ALL, ["right kidney"]),
        ([1, 3, 4], [ALL[0], ALL[2], ALL[3]], ["spleen", "left kidney", "liver"]),  # only those that are there
        ([1, 3, 4], [], ["spleen", "left kidney", "liver"]),
        ([3], [{"name": "Left Kidney"}], ["Left Kidney"]),
        ([1, 2], [{"name": "liver", "idx": 2}, {"name": "cyst", "idx": 1}], ["cyst", "liver"]),
        ([2, 4], [{"name": "cyst", "labelID": 4}, {"name": "stone", "labelID": 2}], ["stone", "cyst"]),
        ([1, 2], [{"name": "a", "idx": 2}, {"name": "b", "idx": 3}], ["a", "b"]),  # Slicer counts the background
        ([1, 9], [{"name": "a"}], ["spleen", "segment 9"]),
        ([8, 9], [{"name": "a"}, {"name": "b"}], ["a", "b"]),
    ],
)
def test_a_name_belongs_to_a_value(values: list[int], entries: list[dict[str, Any]], expected: list[str]):
    assert names(values, entries) == expected
