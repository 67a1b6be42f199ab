"""One cell: the bundle's own training, then the bundle's own evaluation of the model at every milestone."""

from __future__ import annotations

import csv
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from benchmarks.fewshot import HERE, ROOT, run_process
from benchmarks.fewshot.budget import Budget
from benchmarks.fewshot.grid import EPOCHS, Cell, all_rows
from benchmarks.fewshot.milestones import model_at
from benchmarks.fewshot.stage_one import StageOne
from samora_monai.networks import LEVELS
from samora_monai.pipeline.bundle_process import bundle_command, copy_bundle
from samora_monai.pipeline.recipes import LEARNING, SMOOTHING, STAND_INS
from samora_monai.pipeline.record import file_hash, settings_hash

BUNDLE = "samora_segmentation"
# results from before `train.yaml` had `@model` hold the hash of the same transforms with the second name
MODALITY, FIRST_MODALITY = "@model.scaling.modality", "@model_settings['modality']"


@dataclass(frozen=True)
class Study:
    """The part that all cells share.

    Args:
        folder: folder of the logs and of unfinished cells.
        stage_one: base, data and experts.
        budget: steps and batch sizes.
    """

    folder: Path
    stage_one: StageOne
    budget: Budget

    def settings(self, cell: Cell) -> dict[str, Any]:
        """The settings that the result of a cell depends on, without names of files."""
        row = all_rows(self.stage_one.encoder)[cell.row]
        overlay = {"overlay": row.overlay} if row.overlay else self._learning()
        data = {"datalist": str(self.stage_one.data["datalist"]), "modality": self.stage_one.data["modality"]}
        settings = data | self._common() | overlay | row.settings
        settings |= {"steps": self.budget.steps * row.longer, "milestones": list(cell.milestones)}
        settings["augmentation"] = self.augmentation
        settings["base"] = "none" if row.overlay else file_hash(self.stage_one.base)
        if row.files:
            settings["experts_from"] = f"{row.files} {self.stage_one.home.name}"
        return settings

    @cached_property
    def augmentation(self) -> str:
        """Hash of the bundle's random transforms, which no other setting of a cell covers."""
        config = ConfigParser.load_config_file(ROOT / "bundles" / BUNDLE / "configs" / "train.yaml")
        transforms = config["train"]["random_transforms"]
        for transform in transforms:
            if MODALITY in str(transform.get("_disabled_")):
                transform["_disabled_"] = transform["_disabled_"].replace(MODALITY, FIRST_MODALITY)
        return settings_hash(transforms)

    def run(self, cell: Cell) -> list[dict[str, Any]]:
        """Train and score one cell.

        Returns:
            a row for `Results` per milestone.

        Raises:
            FailedRun: a process ended with an error.
        """
        row = all_rows(self.stage_one.encoder)[cell.row]
        settings = {**self.stage_one.data, **self._common(), **self.stage_one.machine}
        settings |= {"num_labeled": cell.labeled, "seed": cell.seed}
        if row.overlay is None:
            settings |= {"encoder": self.stage_one.encoder, "sam_checkpoint": self.stage_one.base} | self._learning()
        settings |= row.settings
        if row.files:
            files = self.stage_one.experts(row.files, cell.seed)
            settings |= {f"{level}_expert": files[level] for level in LEVELS if level in settings["experts"]}
        log = self.folder / "logs" / f"{cell.name}.log"
        log.unlink(missing_ok=True)  # left by a killed run
        configs = ["train.yaml", HERE / row.overlay] if row.overlay else ["train.yaml"]
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="running_") as folder:
            bundle, scores, threads = copy_bundle(BUNDLE, Path(folder, "bundle")), Path(folder), self.stage_one.threads
            settings |= self._schedule(row.longer) | {"milestones": list(cell.milestones)}
            command = bundle_command(bundle, "training", [*configs, HERE / "milestones.yaml"], settings)
            usage = run_process(command, log, threads)
            evaluation = {**self.stage_one.data, **self.stage_one.machine, "output_dir": scores}
            evaluation.pop("modality")  # part of the model
            rows: list[dict[str, Any]] = []
            for epoch in cell.milestones:
                evaluation["checkpoint"] = model_at(bundle / "models" / "model.pt", epoch)
                run_process(bundle_command(bundle, "evaluating", [*configs, "evaluate.yaml"], evaluation), log, threads)
                part = {"fraction": f"{epoch / EPOCHS:g}", "steps": self.budget.steps * row.longer * epoch // EPOCHS}
                rows.append(part | read_scores(scores / "summary.csv"))
        # the last row holds the cost of the whole training
        rows[-1] |= {
            "seconds": f"{usage.seconds:.1f}",
            "cpu_seconds": f"{usage.cpu_seconds:.1f}",
            "memory_mb": f"{usage.memory_mb:.0f}",
        }
        return rows

    def _schedule(self, longer: int) -> dict[str, Any]:
        steps = self.budget.steps * longer
        return {
            "epochs": EPOCHS,
            "val_interval": EPOCHS,
            "train::trainer::epoch_length": steps // EPOCHS,
            "lr_scheduler::max_iterations": steps,
        }

    def _common(self) -> dict[str, Any]:
        return {"batch_size": self.budget.batch_size, "smoothing": SMOOTHING}

    def _learning(self) -> dict[str, Any]:
        learning = LEARNING[self.stage_one.encoder in STAND_INS]["fine-tuning"]
        return {"image_size": self.budget.image_size} | learning


def read_scores(summary: Path) -> dict[str, str]:
    """Dice of each class, mean Dice, and mean HD95 in voxels, from the `summary.csv` of an evaluation."""
    with open(summary, newline="", encoding="utf-8") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    dice = {f"dice {name}": row["dice"] for name, row in rows.items()}
    return dice | {"hd95_voxels": rows["mean"]["hd95_voxels"]}


def origin(machine: Mapping[str, Any]) -> dict[str, str]:
    """The columns `device` and `versions`, which state where the numbers were measured."""
    gpu = torch.cuda.is_available() and machine.get("device") != "cpu"
    device = torch.cuda.get_device_name() if gpu else f"CPU, {platform.machine()}"
    versions = [f"{name} {version(name)}" for name in ("samora_monai", "monai", "torch", "numpy")]
    return {"device": device, "versions": ", ".join([*versions, f"Python {platform.python_version()}"])}
