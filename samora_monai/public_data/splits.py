"""Published splits of Synapse, LA and PROMISE12: the cases and slices for training and test in the papers.

Sources: SAMed (https://github.com/hitachinsk/SAMed) and H-SAM (https://github.com/Cccccczh404/H-SAM), `lists/`; UA-MT
(https://github.com/yulequan/UA-MT), `data/`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Split:
    """The split of one data set, with the names of its cases."""

    modality: str  # CT or MR
    class_names: tuple[str, ...]  # background first
    training: tuple[str, ...]
    validation: tuple[str, ...]  # the test cases of the papers
    # of training cases: slices to keep along the third axis, default: all; number of slices, where those depend on it
    slices: dict[str, tuple[int, ...]] = field(default_factory=dict)
    num_slices: dict[str, int] = field(default_factory=dict)


def _read(entry: dict[str, Any]) -> Split:
    return Split(
        modality=entry["modality"],
        class_names=tuple(entry["class_names"]),
        training=tuple(entry["training"]),
        validation=tuple(entry["validation"]),
        slices={case: tuple(numbers) for case, numbers in entry.get("slices", {}).items()},
        num_slices=entry.get("num_slices", {}),
    )


_FILE = files("samora_monai.public_data") / "splits.json"  # with the source of each list
SPLITS = {name: _read(entry) for name, entry in json.loads(_FILE.read_text()).items()}
