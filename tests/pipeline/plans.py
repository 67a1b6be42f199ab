"""A plan of a few steps at 64 pixels, and the datalist that goes with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from samora_monai.pipeline.plan import EXPERTS, TEACHERS, Plan
from samora_monai.pipeline.recipes import LEARNING, SMALL_DECODER
from samora_monai.synthetic.phantoms import CLASS_NAMES


def tiny_plan(base: Path, steps: int = 4, **fine_tuning: Any) -> Plan:
    """The plan of a stand-in, with two epochs for each training and two runs at a time."""
    recipe = LEARNING[True]
    length = {"steps": steps, "epochs": 2, "batch_size": 4}
    stages: dict[str, dict[str, Any]] = {name: recipe[name] | {"teacher_network": "tiny"} for name in TEACHERS}
    stages |= {name: recipe["expert"] | {"teacher_network": "tiny"} for name in EXPERTS[:2]}
    stages |= {"pixel_expert": recipe["expert"] | SMALL_DECODER, "fine_tuning": recipe["fine-tuning"] | fine_tuning}
    stages = {name: {**length, **stage, "warmup": 2} for name, stage in stages.items()}
    stages["image_teacher"]["view_size"] = 32
    return Plan(
        data={
            "modality": "CT",
            "window": [-125, 275],
            "percentiles": [0.5, 99.5],
            "slice_axis": 2,
            "class_names": list(CLASS_NAMES),
        },
        network={"encoder": "sam2_mini", "sam_checkpoint": str(base), "image_size": 64},
        run={"device": "cpu", "amp": False, "num_workers": 0, "jobs": 2, "threads": 1, "hours": None, "seed": 0},
        stages={**stages, "inference": {"slices_per_pass": 8}},
    )


def write_lists(scans: Path, run: Path, validation: bool = True) -> None:
    """Write the datalist of phantoms in the folder of a pipeline; without validation one scan is labelled."""
    header = json.loads((scans / "dataset.json").read_text())
    for name in ("training", "validation", "unlabeled"):
        header[name] = [{part: str(scans / file) for part, file in case.items()} for case in header[name]]
    if not validation:
        header["unlabeled"] += [{"image": case["image"]} for case in header["training"][1:] + header["validation"]]
        header |= {"training": header["training"][:1], "validation": []}
    (run / "data").mkdir(parents=True, exist_ok=True)
    (run / "data" / "dataset.json").write_text(json.dumps(header))
