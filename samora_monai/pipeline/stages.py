"""The stages of a pipeline: a plan becomes a graph of runs of the bundles.

image_teacher -> image_expert ─┐
patch_teacher -> patch_expert ─┼-> fine_tuning -> evaluation, prediction
pixel_expert ──────────────────┘
samed -> samed_evaluation        (for comparison: the same fine-tuning without experts of stage 1)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samora_monai.bundles import bundle_path
from samora_monai.data import Cases, SaveLabeld, find_cases
from samora_monai.data.datalist import volumes_of
from samora_monai.data.scans import absolute, relative_case
from samora_monai.errors import InputError
from samora_monai.pipeline.bundle_process import bundle_command
from samora_monai.pipeline.plan import CONFIGS, EXPERTS, SAMORA, SCORED_ON_TRAINING, TEACHERS, Plan, default_settings
from samora_monai.pipeline.record import file_hash, scans_hash, settings_hash
from samora_monai.settings import file_or_none

SEGMENTATION = "samora_segmentation"
PREDICTIONS = "predictions"  # folder of the labels of scans without a label
# settings of a fine-tuning that SAMed, which has one expert and no fusion, does not share
_OF_EXPERTS = (
    *("experts", "fusion", "fusion_order", "fusion_width", "fusion_norm", "fusion_blocks", "fusion_start"),
    *("trainable", "expert_rate", "weight_decay_on"),
)
_SLICES_OF_A_SCAN = 100


@dataclass(frozen=True)
class Stage:
    """One run of a bundle.

    Args:
        name: unique in a pipeline.
        bundle: name of the bundle.
        folder: its copy, in which it runs.
        workflow, configs: of `monai.bundle run`.
        settings: overrides that the results depend on.
        places: overrides that they do not depend on, but for rounding: files of the pipeline, and the machine.
        needs: names of the stages that must be finished.
        scans: files that the stage reads.
        results: files that the stage makes.
        last: the last checkpoint of a training, which can be resumed; None for other runs.
        beside_others: whether other stages may run at the same time; if not, it gets all cores.
        work: estimated number of slices that pass through the network, forward and backward, in units of an expert's.
    """

    name: str
    bundle: str
    folder: Path
    workflow: str
    configs: tuple[str, ...]
    settings: Mapping[str, Any]
    places: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    scans: tuple[str, ...] = ()
    results: tuple[Path, ...] = ()
    last: Path | None = None
    beside_others: bool = True
    work: float = 0.0
    note: str = field(default="", compare=False)

    def command(self, resume: bool = False) -> list[str]:
        """The command line; `resume` continues an interrupted training."""
        more = {"resume": True} if resume else {}
        return bundle_command(self.folder, self.workflow, self.configs, {**self.settings, **self.places, **more})

    def made_from(self, needs: Mapping[str, str]) -> dict[str, Any]:
        """Everything that the results depend on, for a `Record`; `needs` has the hash of each needed stage.

        Raises:
            MissingFileError: a scan or a checkpoint does not exist.
        """
        settings = dict(self.settings)
        for name, value in settings.items():
            if name.endswith("_checkpoint") and file_or_none(value):
                settings[name] = file_hash(value)
        configs = [file_hash(bundle_path(self.bundle) / "configs" / name) for name in self.configs]
        return {
            "settings": settings,
            "scans": scans_hash(self.scans),
            "configs": settings_hash(configs),
            "needs": {name: needs[name] for name in self.needs},
        }


def stages_of(plan: Plan, run: Path, compare: bool = False) -> list[Stage]:
    """The stages of a plan, each after those that it needs.

    Args:
        run: absolute path of the folder of the pipeline; `data/dataset.json` in it lists the scans.
        compare: add SAMed.

    Raises:
        MissingFileError: the datalist or a scan that it lists does not exist.
        InputError: no scan has a label.
    """
    cases = find_cases(run / "data")
    if not cases.training:
        raise InputError(f"'{cases.source}' has no labelled scan for training; label one, `samora select` names which")
    makers = _Makers(plan, run, cases)
    stages = [makers.pretraining(name) for name in (*TEACHERS, *EXPERTS)]
    samora = {**SAMORA, **makers.of_plan("fine_tuning")}
    levels = [f"{level}_expert" for level in samora["experts"]]
    experts = {name: run / "bundles" / name / "models" / "expert.pt" for name in levels if name in EXPERTS}
    stages += makers.fine_tuning("fine_tuning", "samora", "evaluation", samora, experts)
    if compare:
        samed = {name: value for name, value in makers.of_plan("fine_tuning").items() if name not in _OF_EXPERTS}
        stages += makers.fine_tuning("samed", "samed", "samed_evaluation", samed, {})
    return stages + makers.prediction()


@dataclass(frozen=True)
class _Makers:
    plan: Plan
    run: Path
    cases: Cases

    def of_plan(self, name: str) -> dict[str, Any]:
        """The settings of a training; epochs are equal parts of its steps, each with a validation at its end."""
        own = dict(self.plan.stages[name])
        steps = own.pop("steps")
        length = {"train::trainer::epoch_length": steps // own["epochs"], "lr_scheduler::max_iterations": steps}
        return {"val_interval": 1, **own, **length, **self.machine("seed")}

    def machine(self, *names: str) -> dict[str, Any]:
        found = {**self.plan.run, **self.plan.stages["inference"]}
        return {name: found[name] for name in names if found[name] is not None}

    def inference(self) -> dict[str, Any]:
        """The settings of an inference that change labels, of evaluation and prediction alike."""
        return {name: value for name, value in self.plan.stages["inference"].items() if name == "tta"}

    def work(self, name: str, factor: float) -> float:
        return factor * self.plan.stages[name]["steps"] * self.plan.stages[name]["batch_size"]

    def pretraining(self, name: str) -> Stage:
        """A teacher or an expert."""
        teacher, bundle = name in TEACHERS, f"samora_{name.split('_')[0]}_expert"
        own = self.of_plan(name)
        size = {"image_size": self.plan.network["image_size"]}
        network = size if teacher else self.plan.network
        settings = {**_known(self.plan.data, name), **network, **own}
        folder, teachers = self.run / "bundles" / name, {}
        taught_by = name.replace("expert", "teacher")
        if not teacher and taught_by in TEACHERS:
            teachers = {"teacher_checkpoint": self.run / "bundles" / taught_by / "models" / "teacher.pt"}
        images = [case["image"] for case in (*self.cases.unlabeled, *self.cases.training, *self.cases.validation)]
        return Stage(
            name=name,
            bundle=bundle,
            folder=folder,
            workflow="teacher" if teacher else "training",
            configs=CONFIGS[name],
            settings=_absolute(settings),
            places={"dataset_dir": self.run / "data", **teachers, **self.machine("device", "amp", "num_workers")},
            needs=(taught_by,) if teachers else (),
            scans=tuple(images),
            results=(folder / "models" / ("teacher.pt" if teacher else "expert.pt"),),
            last=folder / "eval" / ("last_teacher.pt" if teacher else "last.pt"),
            work=self.work(name, 0.5 if teacher else 1.0),
        )

    def fine_tuning(
        self, name: str, system: str, evaluation: str, own: Mapping[str, Any], experts: Mapping[str, Path]
    ) -> list[Stage]:
        """A fine-tuning and its evaluation; without validation scans, on the training scans."""
        folder, output_dir, cases = self.run / system, self.run / "results" / system, self.cases
        settings = {**_known(self.plan.data, "fine_tuning"), **self.plan.network, **own}
        data, note = {"dataset_dir": self.run / "data"}, ""
        scored = cases.validation or cases.training
        scorings = self.inference()
        if not cases.validation:
            settings = {**SCORED_ON_TRAINING, **settings}
            scorings |= SCORED_ON_TRAINING
            note = "no scans for validation: the figures are of the training scans, on other scans they will be lower"
        machine = self.machine("device", "amp", "num_workers", "slices_per_pass")
        training = Stage(
            name=name,
            bundle=SEGMENTATION,
            folder=folder,
            workflow="training",
            configs=("train.yaml",),
            settings=_absolute(settings),
            places={**data, **experts, **machine},
            needs=tuple(experts),
            scans=_files(cases.training + cases.validation + (cases.unlabeled if own.get("unlabeled") else ())),
            results=(folder / "models" / "model.pt", folder / "models" / "model.json"),
            last=folder / "eval" / "last.pt",
            beside_others=not experts,
            work=self.work("fine_tuning", (2.0 if experts else 1.0) * (2.0 if own.get("unlabeled") else 1.0)),
            note=note,
        )
        scoring = Stage(
            name=evaluation,
            bundle=SEGMENTATION,
            folder=folder,
            workflow="evaluating",
            configs=("train.yaml", "evaluate.yaml"),
            settings=scorings,
            places={**data, "output_dir": output_dir, **self.machine("device", "amp", "slices_per_pass")},
            needs=(name,),
            scans=_files(scored),
            results=(output_dir / "summary.csv", output_dir / "report.html"),
            beside_others=not experts,
            work=0.3 * _SLICES_OF_A_SCAN * len(scored),
            note=note,
        )
        return [training, scoring]

    def prediction(self) -> list[Stage]:
        """The inference on the scans without labels, if there are any; pictures are no scans."""
        scans = [scan["image"] for scan in volumes_of(self.run / "data")]
        if not scans:
            return []
        folder, output_dir = self.run / "samora", self.run / PREDICTIONS
        root = os.path.commonpath([os.path.dirname(scan) for scan in scans])
        scan_of: dict[Path, str] = {}
        for scan in scans:
            if (other := scan_of.setdefault(relative_case(scan, root), scan)) != scan:
                raise InputError(
                    f"the labels of '{other}' and '{scan}' would get the same name; rename or remove one of them, and "
                    "make the plan again"
                )
        saver = SaveLabeld("pred", output_dir, root)  # as in the bundle
        listed = "$samora_monai.data.volumes_of(@bundle_root + '/../data')"  # no path: it might hold an @
        places: dict[str, Any] = {"dataset_dir": root}
        places |= {"dataset::data::scans": listed, "output_dir": output_dir, "resume": True}
        stage = Stage(
            name="prediction",
            bundle=SEGMENTATION,
            folder=folder,
            workflow="inference",
            configs=("inference.json",),
            settings=self.inference(),
            places=places | self.machine("device", "amp", "num_workers", "slices_per_pass"),
            needs=("fine_tuning",),
            scans=tuple(scans),
            results=tuple(saver.file_of(scan) for scan in scans),
            beside_others=False,
            work=0.2 * _SLICES_OF_A_SCAN * len(scans),
        )
        return [stage]


def _known(settings: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """The settings that the bundle of a stage has."""
    return {name: value for name, value in settings.items() if name in default_settings(stage)}


def _absolute(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with absolute paths of checkpoints."""
    return {
        name: str(absolute(value)) if name.endswith("_checkpoint") and file_or_none(value) else value
        for name, value in settings.items()
    }


def _files(cases: tuple[dict[str, str], ...]) -> tuple[str, ...]:
    return tuple(path for case in cases for path in case.values())
