"""Classes and modality: precedence of the settings, and what is refused."""

from __future__ import annotations

import pytest

from samora_monai.data import Cases, check_modality, resolve_class_names
from samora_monai.errors import InputError

REMEDY = r"use --num_classes N or --class_names \"\['background','liver'\]\"$"


def cases(class_names=None, modality=None):
    return Cases((), (), (), class_names, modality, "dataset.json")


@pytest.mark.parametrize(
    ("stated", "num_classes", "class_names", "expected"),
    [
        (("bg", "liver"), None, None, ("bg", "liver")),
        (("bg", "liver"), 2, None, ("bg", "liver")),
        (("bg", "liver"), 3, None, ("background", "class 1", "class 2")),
        (None, 2, None, ("background", "class 1")),
        (("bg", "liver"), None, ["background", "atrium"], ("background", "atrium")),
        (None, 2, ("background", "atrium"), ("background", "atrium")),
    ],
)
def test_class_names(stated, num_classes, class_names, expected):
    assert resolve_class_names(cases(stated), num_classes, class_names) == expected


@pytest.mark.parametrize(
    ("stated", "num_classes", "class_names", "sentence"),
    [
        (None, None, None, "'dataset.json' does not name the classes; " + REMEDY),
        (None, 3, ["background", "liver"], "num_classes is 3 but class_names has 2 names; give one of them"),
        (None, 1, None, "expected 2 to 256 classes including background, got 1; " + REMEDY),
        (None, -1, None, "got 0; " + REMEDY),
        (None, 257, None, "expected 2 to 256 classes including background, got 257"),
        (None, "2", None, "num_classes must be a whole number, got '2'"),
        (None, None, "background,liver", "class_names must be a list of names, got 'background,liver'; " + REMEDY),
        (None, None, [0, 1], r"class_names must be a list of names, got \[0, 1\]"),
        (("bg", "liver", "liver"), None, None, "two classes have the name 'liver'"),
    ],
)
def test_class_names_refused(stated, num_classes, class_names, sentence):
    with pytest.raises(InputError, match=sentence):
        resolve_class_names(cases(stated), num_classes, class_names)


def test_modality():
    for stated, setting in (("CT", "CT"), ("MR", "MR"), (None, "CT"), (None, "MR")):
        check_modality(cases(modality=stated), setting)
    with pytest.raises(InputError, match="states that the scans are MR, but modality is CT; use --modality MR"):
        check_modality(cases(modality="MR"), "CT")
    with pytest.raises(InputError, match="modality must be 'CT' or 'MR', got 'mri'; use --modality CT or"):
        check_modality(cases(), "mri")
