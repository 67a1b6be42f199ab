"""Phantoms, the bundle, and one training that many tests look at."""

from __future__ import annotations

import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow, create_workflow
from monai.utils import set_determinism

from samora_monai.synthetic.phantoms import write_phantoms
from samora_monai.workflow.error_hook import LOGGERS, is_no_mistake
from tests.bundles.command_line import (
    CONFIGS,
    EXPERT_BUNDLES,
    FAST,
    FAST_EXPERT,
    FAST_TEACHER,
    Bundle,
    CommandLine,
    Finished,
)
from tests.bundles.weights import write_sam


@pytest.fixture(scope="session")
def command_line(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return CommandLine(tmp_path_factory.mktemp("output"))


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans for training and two for validation, none of them RAS and the third oblique. Not to be changed."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, num_training=2, num_validation=2, shape=(48, 48, 8))
    return folder


@pytest.fixture
def data(phantoms: Path, tmp_path: Path) -> Path:
    """The phantoms, to be spoiled."""
    return Path(shutil.copytree(phantoms, tmp_path / "data"))


@pytest.fixture
def bundle(tmp_path: Path, command_line: CommandLine) -> Bundle:
    """A bundle without a model."""
    return Bundle(tmp_path / "bundle", command_line)


@dataclass(frozen=True)
class Trained:
    """A trained bundle, what its training printed, and its data. Not to be changed: give another `output_dir`."""

    bundle: Bundle
    finished: Finished
    data: Path

    @property
    def output_dir(self) -> Path:
        return self.bundle.root / "eval"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, command_line: CommandLine, phantoms: Path) -> Trained:
    bundle = Bundle(tmp_path_factory.mktemp("trained") / "bundle", command_line)
    finished = bundle("training", dataset_dir=phantoms, **FAST)
    assert finished.code == 0, finished
    return Trained(bundle, finished, phantoms)


@pytest.fixture(scope="session")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `tiny` in place of Meta's checkpoint."""
    return write_sam(tmp_path_factory.mktemp("sam") / "sam.pth")


@dataclass(frozen=True)
class TrainedExpert:
    """An expert bundle with an expert and, where it has one, a teacher. Not to be changed."""

    bundle: Bundle
    teaching: Finished | None
    finished: Finished

    @property
    def expert(self) -> Path:
        return self.bundle.root / "models" / "expert.pt"

    @property
    def teacher(self) -> Path:
        return self.bundle.root / "models" / "teacher.pt"


@pytest.fixture(scope="session")
def experts(
    tmp_path_factory: pytest.TempPathFactory, command_line: CommandLine, phantoms: Path, sam: Path
) -> dict[str, TrainedExpert]:
    """The three bundles by their level, each trained on the phantoms as its README says: first the teacher."""
    folder, trained = tmp_path_factory.mktemp("experts"), {}
    for level, source in EXPERT_BUNDLES.items():
        bundle, teaching = Bundle(folder / level, command_line, source), None
        if level in FAST_TEACHER:
            teaching = bundle("teacher", dataset_dir=phantoms, **FAST_TEACHER[level])
            assert teaching.code == 0, teaching
        finished = bundle("training", dataset_dir=phantoms, sam_checkpoint=sam, **FAST_EXPERT[level])
        assert finished.code == 0, finished
        trained[level] = TrainedExpert(bundle, teaching, finished)
    return trained


@pytest.fixture
def expert_bundle(tmp_path: Path, command_line: CommandLine) -> Callable[..., Bundle]:
    """`expert_bundle(level)`: an expert bundle without any file of a training; another one under another `name`."""
    return lambda level, name="bundle": Bundle(tmp_path / f"{level}_{name}", command_line, EXPERT_BUNDLES[level])


@pytest.fixture
def in_process() -> Iterator[Callable[..., ConfigWorkflow]]:
    """`in_process(bundle, "training", KEY=VALUE, ...)` builds the workflow in this process.

    What the start of a run changes in this process is undone afterwards.
    """
    before = sys.excepthook, logging.getLogger("monai.bundle.scripts").level
    path = list(sys.path)

    def build(bundle: Bundle, workflow: str, **settings: Any) -> ConfigWorkflow:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "parsing config_file")  # the notice about trusted sources
            return create_workflow(
                config_file=bundle.configs(*CONFIGS[workflow]),
                workflow_type="inference" if workflow == "inference" else "train",
                logging_file=False,
                bundle_root=str(bundle.root),
                **settings,
            )

    yield build
    sys.path[:] = path
    sys.excepthook = before[0]
    for name in LOGGERS:
        logging.getLogger(name).removeFilter(is_no_mistake)
    logging.getLogger("monai.bundle.scripts").setLevel(before[1])
    set_determinism(seed=None)
