"""The lines that two configs share below their settings: wiring that several bundles need belongs in the package."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from tests.bundles.command_line import BUNDLES

LIMIT = 60
FORMAT = ("imports:", "run:", "finalize:", "training:", "inference")  # ids that a bundle of any kind has
NAMES = ("train.yaml", "teacher.yaml", "evaluate.yaml", "inference.json", "multi_gpu_train.yaml")
FILES = sorted(path for path in BUNDLES.glob("*/configs/*") if path.name in NAMES)


def wiring(path: Path) -> Counter[str]:
    """The lines of a config below its settings, without comments, blank lines, lone brackets and lines of the format:
    the ids of `FORMAT`, and lines that only open a section."""
    text = path.read_text()
    if path.suffix == ".yaml":
        text = text[max(text.find("\nimports:"), 0) :]
    lines = (line.split("  #")[0].strip() for line in text.splitlines())
    return Counter(
        line
        for line in lines
        if line.strip("{}[],") and not line.startswith(("#", *FORMAT)) and not line.endswith((":", ": {", ": ["))
    )


def name(path: Path) -> str:
    return f"{path.parents[1].name}/{path.name}"


@pytest.mark.parametrize(("one", "other"), combinations(FILES, 2), ids=name)
def test_two_configs_share_few_lines(one: Path, other: Path):
    assert (wiring(one) & wiring(other)).total() <= LIMIT


def test_training_of_an_expert_fits_on_few_screens():
    lengths = {name(path): len(path.read_text().splitlines()) for path in FILES if "_expert/" in name(path)}
    assert {path: length for path, length in lengths.items() if length > 140} == {}
