"""Stage 1: teachers and experts that are trained once, on the scans without their labels, and shared by all cells.

It trains on the images that the datalist lists under `unlabeled` and `training`. Each file is that of the last step, so
that the held-out images select nothing. The files of one base and one set of settings share a folder.

variant       the experts of a level
trained       distilled from a teacher that was trained further on the scans (from random weights without public ones)
raw           the same, without LayerNorm on the teacher's targets
standardised  the same, with targets standardised by channel
dense         the same, with SimCLR's map as a target too
anchored      the same, anchored to the base's embedding
public        distilled from the public teacher as published
random        not trained: see `random_experts.py`
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fewshot import run_process
from benchmarks.fewshot.budget import Budget
from samora_monai.networks import LEVELS
from samora_monai.pipeline.bundle_process import bundle_command, copy_bundle
from samora_monai.pipeline.recipes import LEARNING, SMALL_DECODER, STAND_INS, TEACHER_NETWORKS
from samora_monai.pipeline.record import Record, file_hash, settings_hash

TAUGHT = ("image", "patch")
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {  # the settings of each level that a variant changes
    "raw": {level: {"normalize_target": "false"} for level in TAUGHT},
    "standardised": {level: {"standardise_targets": "true"} for level in TAUGHT},
    "dense": {"image": {"dense": "true"}},
    "anchored": {level: {"anchor": 0.1} for level in LEVELS},
}


@dataclass(frozen=True)
class StageOne:
    """The experts of one base.

    Args:
        folder: folder of the experts of all bases.
        base: file of the base.
        encoder: preset of the base.
        data: `dataset_dir`, `datalist` and `modality` of the scans.
        budget: steps and batch sizes.
        public: public teachers' files by level, `image` and `patch`; if empty, small ones are trained from scratch.
        machine: settings that do not change the result: `device`, `num_workers`.
        threads: number of threads of each process.
    """

    folder: Path
    base: Path
    encoder: str
    data: Mapping[str, Any]
    budget: Budget
    public: Mapping[str, Path] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1

    def settings(self) -> dict[str, Any]:
        """Everything that changes a file; the base's steps are also covered by its hash, which is harmless."""
        fine_tuning = ("image_size", "steps", "batch_size")
        steps = {key: value for key, value in self.budget.as_dict().items() if key not in fine_tuning}
        return {
            "base": file_hash(self.base),
            "encoder": self.encoder,
            "datalist": str(self.data["datalist"]),
            "modality": self.data["modality"],
            "teachers": {level: file_hash(path) for level, path in sorted(self.public.items())},
            "learning": {
                part: LEARNING[self.encoder in STAND_INS][part] for part in ("expert", "image_teacher", "patch_teacher")
            },
            **steps,
        }

    @property
    def home(self) -> Path:
        """The folder of the files, named after the settings."""
        return self.folder / settings_hash(self.settings())

    def experts(self, variant: str, seed: int) -> dict[str, Path]:
        """The file of each level, made if it is not there.

        Args:
            variant: see above; a level that it does not change is that of `trained`.
            seed: of the random experts.
        """
        if variant == "random":
            return self._random(seed)
        return {level: self.expert(level, variant) for level in LEVELS}

    def expert(self, level: str, variant: str) -> Path:
        """The expert file of one level."""
        changes = VARIANTS.get(variant, {}).get(level, {})
        if not changes and not (variant == "public" and level in TAUGHT):
            variant = "trained"
        file = self.home / f"{level}_{variant}.pt"
        if self._record(file).is_finished([file]):
            return file
        stand_in = self.encoder in STAND_INS
        settings = {"encoder": self.encoder, "sam_checkpoint": self.base, "batch_size": self.budget.expert_batch_size}
        settings |= LEARNING[stand_in]["expert"] | changes
        if level in TAUGHT:
            teacher = self.public[level] if variant == "public" else self.teacher(level)
            settings |= {"teacher_network": self._network(level), "teacher_checkpoint": teacher}
        elif stand_in:
            settings |= SMALL_DECODER
        return self._make(file, level, "training", self.budget.expert_steps, settings, "expert_last.pt")

    def teacher(self, level: str) -> Path:
        """The trained teacher of one level."""
        file = self.home / f"{level}_teacher.pt"
        if self._record(file).is_finished([file]):
            return file
        settings = {"teacher_network": self._network(level), "batch_size": self.budget.teacher_batch_size}
        settings |= LEARNING[not self.public][f"{level}_teacher"]
        settings |= {"initial_checkpoint": self.public[level]} if self.public else {}
        steps = self.budget.as_dict()[f"{level}_teacher_steps"]
        return self._make(file, level, "teacher", steps, settings, "teacher.pt")

    def _network(self, level: str) -> str:
        return TEACHER_NETWORKS[not self.public][level]

    def _make(self, file: Path, level: str, workflow: str, steps: int, settings: dict[str, Any], result: str) -> Path:
        """Run an expert bundle for one epoch of `steps` steps, which ends with a validation, and keep its result."""
        self.home.mkdir(parents=True, exist_ok=True)
        configs = ["train.yaml", "teacher.yaml"] if workflow == "teacher" else ["train.yaml"]
        settings = {"image_size": self.budget.expert_image_size} | settings
        length = {"epochs": 1, "train::trainer::epoch_length": steps, "lr_scheduler::max_iterations": steps}
        with tempfile.TemporaryDirectory(dir=self.home, prefix="running_") as folder:
            bundle = copy_bundle(f"samora_{level}_expert", Path(folder, "bundle"))
            command = bundle_command(bundle, workflow, configs, {**self.data, **settings, **length, **self.machine})
            print(f"stage 1: {file.stem}, {steps} steps", flush=True)
            usage = run_process(command, self.home / f"{file.stem}.log", self.threads)
            print(f"stage 1: {file.stem} took {usage}", flush=True)
            os.replace(bundle / "models" / result, file)
        self._record(file).finish(seconds=round(usage.seconds, 1), memory_mb=round(usage.memory_mb))
        return file

    def _record(self, file: Path) -> Record:
        """What a file is made from, beside it: the settings of the folder, whose name is their hash."""
        return Record(file.with_suffix(".json"), self.settings())

    def _random(self, seed: int) -> dict[str, Path]:
        files = {level: self.home / f"{level}_random_{seed}.pt" for level in LEVELS}
        record = self._record(self.home / f"random_{seed}.pt")
        if not record.is_finished(files.values()):
            trained = self.experts("trained", seed)
            script = "benchmarks.fewshot.random_experts"
            command = [sys.executable, "-m", script, str(self.base), self.encoder, str(seed)]
            for level in LEVELS:
                command += [str(trained[level]), str(files[level])]
            run_process(command, self.home / f"random_{seed}.log", self.threads)
            record.finish()
        return files


def clear_unfinished(folder: Path) -> None:
    """Remove the unfinished folders of killed runs."""
    for unfinished in folder.glob("**/running_*"):
        shutil.rmtree(unfinished, ignore_errors=True)  # a process that outlived its run may still write to it
