"""Stage 1, made once and shared by all cells: teachers and experts from the scans, their labels unseen.

It learns from the images that the datalist names under `unlabeled` and `training`. Each file is that of the last step,
so that the held-out images choose nothing. The files of one base and one set of settings lie in one folder.

variant    the experts of a level
trained    taught by a teacher that was continued on the scans (trained on them from random weights without public ones)
raw        the same, the teacher's targets without LayerNorm
public     taught by the public teacher as it is
random     not taught: see `random_experts.py`
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from budget import LEARNING, Budget
from bundle_process import HERE, bundle_command, copy_bundle, run_process

from samora_monai.checkpoints.files import file_sha256
from samora_monai.networks import LEVELS

TAUGHT = ("image", "patch")
PUBLIC_NETWORKS = {"image": "r50_2x_sk1", "patch": "vit_l"}


@dataclass(frozen=True)
class StageOne:
    """The experts of one base.

    Args:
        folder: where those of all bases go.
        base: file of the base.
        encoder: its preset.
        data: `dataset_dir`, `datalist` and `modality` of the scans.
        budget: how long everything trains.
        public: for `image` and `patch` the file of a public teacher, or nothing for small teachers from random weights.
        machine: settings that change no result: `device`, `num_workers`.
        threads: of each process.
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
        """Everything that changes a file (the base's steps are in its hash too, and do no harm)."""
        fine_tuning = ("image_size", "steps", "batch_size")
        steps = {key: value for key, value in self.budget.as_dict().items() if key not in fine_tuning}
        return {
            "base": file_hash(self.base),
            "encoder": self.encoder,
            "datalist": str(self.data["datalist"]),
            "modality": self.data["modality"],
            "teachers": {level: file_hash(path) for level, path in sorted(self.public.items())},
            "learning": {
                part: LEARNING[self.encoder == "tiny"][part] for part in ("expert", "image_teacher", "patch_teacher")
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
            variant: see above; the pixel level has no teacher, and is the same in all but `random`.
            seed: of the random experts.
        """
        if variant == "random":
            return self._random(seed)
        return {level: self.expert(level, variant) for level in LEVELS}

    def expert(self, level: str, variant: str) -> Path:
        """The expert file of one level."""
        variant = variant if level in TAUGHT else "trained"
        file = self.home / f"{level}_{variant}.pt"
        if file.exists():
            return file
        tiny = self.encoder == "tiny"
        settings = {"encoder": self.encoder, "sam_checkpoint": self.base, "batch_size": self.budget.expert_batch_size}
        settings |= LEARNING[tiny]["expert"]
        if level in TAUGHT:
            teacher = self.public[level] if variant == "public" else self.teacher(level)
            settings |= {"teacher_network": self._network(level), "teacher_checkpoint": teacher}
            settings |= {"normalize_target": "false"} if variant == "raw" else {}
        elif tiny:
            settings["decoder_features"] = 8
        return self._make(file, level, "training", self.budget.expert_steps, settings, "expert_last.pt")

    def teacher(self, level: str) -> Path:
        """The continued teacher of one level."""
        file = self.home / f"{level}_teacher.pt"
        if file.exists():
            return file
        settings = {"teacher_network": self._network(level), "batch_size": self.budget.teacher_batch_size}
        settings |= LEARNING[not self.public][f"{level}_teacher"]
        settings |= {"initial_checkpoint": self.public[level]} if self.public else {}
        steps = self.budget.as_dict()[f"{level}_teacher_steps"]
        return self._make(file, level, "teacher", steps, settings, "teacher.pt")

    def _network(self, level: str) -> str:
        return PUBLIC_NETWORKS[level] if self.public else "tiny"

    def _make(self, file: Path, level: str, workflow: str, steps: int, settings: dict[str, Any], result: str) -> Path:
        """One run of an expert bundle: one epoch of `steps` steps, validated and saved at its end."""
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "settings.json").write_text(json.dumps(self.settings(), indent=1) + "\n")
        config = "teacher.yaml" if workflow == "teacher" else "train.yaml"
        settings = {"image_size": self.budget.expert_image_size} | settings
        length = {"epochs": 1, "train::trainer::epoch_length": steps, "lr_scheduler::max_iterations": steps}
        with tempfile.TemporaryDirectory(dir=self.home, prefix="running_") as folder:
            bundle = copy_bundle(f"samora_{level}_expert", Path(folder, "bundle"))
            command = bundle_command(bundle, workflow, [config], {**self.data, **settings, **length, **self.machine})
            print(f"stage 1: {file.stem}, {steps} steps", flush=True)
            usage = run_process(command, self.home / f"{file.stem}.log", self.threads)
            print(f"stage 1: {file.stem} took {usage}", flush=True)
            os.replace(bundle / "models" / result, file)
        return file

    def _random(self, seed: int) -> dict[str, Path]:
        files = {level: self.home / f"{level}_random_{seed}.pt" for level in LEVELS}
        if not all(file.exists() for file in files.values()):
            trained = self.experts("trained", seed)
            command = [sys.executable, str(HERE / "random_experts.py"), str(self.base), self.encoder, str(seed)]
            for level in LEVELS:
                command += [str(trained[level]), str(files[level])]
            run_process(command, self.home / f"random_{seed}.log", self.threads)
        return files


def clear_unfinished(folder: Path) -> None:
    """Removes what killed runs left."""
    for unfinished in folder.glob("**/running_*"):
        shutil.rmtree(unfinished, ignore_errors=True)  # a process that outlived its run may still write there


def settings_hash(settings: Any) -> str:
    """The start of the SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def file_hash(path: Path) -> str:
    """The start of the SHA-256 of a file's bytes."""
    return file_sha256(path)[:12]
