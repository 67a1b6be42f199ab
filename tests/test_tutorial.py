"""`docs/tutorial.md`, executed as it stands on small scans in a temporary folder.

A block of commands is left out if one of them starts with a word of `OUTSIDE`: it needs a network or a server. All
others are executed in the order of the page. Between them the test does what the page tells a person to do: it labels
the scans that `samora select` names, and edits `plan.yaml`, here to trainings of two steps.
"""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from samora_monai.pipeline.command import parse
from samora_monai.synthetic.phantoms import make_phantom

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
OUTSIDE = ("pip", "make", "python3 -m venv", "python -m samora_monai.download")
SCANS, NEW, SHAPE = 6, 2, (48, 48, 12)
SHORT = {"steps": 2, "epochs": 1, "warmup": 1, "batch_size": 4}
TIMEOUT = 900  # seconds for one command


def blocks() -> list[list[str]]:
    """The commands of each block of the page, without comments."""
    texts = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [[shlex.join(shlex.split(line, comments=True)) for line in text.splitlines()] for text in texts]


def executed() -> list[str]:
    """The commands that are executed."""
    inside = [block for block in blocks() if not any(line.startswith(OUTSIDE) for line in block)]
    return [command for block in inside for command in block]


def samora(command: str) -> list[str]:
    """The words after `samora`; none of another command."""
    word, *words = shlex.split(command)
    return words if word == "samora" else []


def test_every_option_of_the_commands_exists():
    commands = [words for block in blocks() for command in block if (words := samora(command))]
    assert {words[0] for words in commands} == {"select", "plan", "train", "predict"}
    for words in commands:
        parse(words)


def test_all_steps_are_executed():
    words = [words for command in executed() if (words := samora(command))]
    for kind in ("ct", "mr"):
        mine = [word for word, first, *_ in words if first in (kind, f"run_{kind}")]
        assert list(dict.fromkeys(mine)) == ["select", "plan", "train", "predict"]


def test_messages_of_the_table_are_those_of_the_package():
    source = " ".join(path.read_text() for path in (ROOT / "samora_monai" / "pipeline").rglob("*.py"))
    messages = re.findall(r"^\| `(.+?)`", PAGE.partition("## When something stops")[2], re.MULTILINE)
    assert len(messages) == 7
    for message in messages:
        assert all(part in source for part in message.split("...")), message


def write_scan(kind: str, case: int, folder: Path) -> nib.Nifti1Image:
    """Write a scan, and return its label: a CT, or a sagittal MR scan with another field of the coil in each.

    Patients differ in size, since `samora select` takes phantoms of equal size for scans of one patient.
    """
    image, label = make_phantom(case, SHAPE if kind == "ct" else SHAPE[::-1], seed=1)
    affine = image.affine @ np.diag([*[0.5 + 0.15 * case] * 3, 1])
    values = np.asanyarray(image.dataobj)
    if kind == "mr":
        field = np.linspace(0.8, 1.2, values.shape[0])[:, None, None] * (1 + case / 10)
        values = ((values.clip(-200, 300) + 200) * field).astype(np.int16)
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), folder / f"patient_{case:02d}.nii.gz")
    return nib.Nifti1Image(label.dataobj, affine)


class Person:
    """Does between the commands what the page says."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.labels = {case: write_scan(kind, case, folder / kind) for case in range(1, SCANS + 1)}
        for case in range(SCANS + 1, SCANS + NEW + 1):
            write_scan(kind, case, folder / f"new_{kind}")

    def label(self, table: Path) -> None:
        """Label the scans that were chosen."""
        place = self.folder / self.kind / "labels" / "final"
        assert f"`{self.kind}/labels/final`" in PAGE and place.is_dir()
        with open(table, newline="", encoding="utf-8") as file:
            chosen = [row["scan"] for row in csv.DictReader(file) if row["order"]]
        for scan in chosen:
            nib.save(self.labels[int(scan[8:10])], place / scan)

    def edit(self, plan: Path) -> None:
        """Name the classes, and shorten the trainings."""
        settings = yaml.safe_load(plan.read_text())
        shown = yaml.safe_load(re.search(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[1])
        for name, section in shown.items():
            for key, value in section.items():
                assert key in settings[name], f"{name}.{key} of the page is not in a plan"
                assert not isinstance(value, dict) or value.keys() <= settings[name][key].keys()
        settings["data"]["class_names"][1] = "spleen"
        settings["network"]["image_size"] = 64
        for stage, own in settings["stages"].items():
            if stage != "inference":
                own.update(SHORT)
        plan.write_text(yaml.safe_dump(settings, sort_keys=False))


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """`samora` and `python` are those of this checkout."""
    programs = {"samora": '-m samora_monai.pipeline "$@"', "python": '"$@"'}
    (tmp_path / "bin").mkdir()
    for name, words in programs.items():
        file = tmp_path / "bin" / name
        file.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} {words}\n")
        file.chmod(0o755)
    paths = {"PATH": os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]]), "PYTHONPATH": str(ROOT)}
    return {**os.environ, **paths, "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ct", "mr"])
def test_the_commands_run_as_they_stand(kind: str, tmp_path: Path, environment: dict[str, str]):
    folder = tmp_path / "work"
    person = Person(kind, folder)
    said = {}
    mine = [command for command in executed() if re.search(rf"(\b|_){kind}\b", command)]
    assert not [command for command in executed() if not re.search(r"(\b|_)(ct|mr)\b", command)]
    for command in mine:
        done = subprocess.run(
            ["bash", "-ec", command],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}"
        said[command] = done.stdout
        if samora(command)[:1] == ["select"]:
            person.label(folder / f"first_{kind}" / "select.csv")
        if samora(command)[:1] == ["plan"]:
            person.edit(folder / f"run_{kind}" / "plan.yaml")

    run = folder / f"run_{kind}"
    assert "spleen" in said[f"samora train {kind} --output run_{kind}"]
    assert "spleen" in (run / "results" / "samora" / "report.html").read_text()
    assert all((run / file).exists() for file in re.findall(r"^\| `([\w./]+)`", PAGE, re.MULTILINE) if "/" in file)
    labelled = {path.name for path in (folder / kind / "labels" / "final").iterdir()}
    rest = {path.name.replace(".nii", "_seg.nii") for path in (folder / kind).glob("*.gz") if path.name not in labelled}
    assert {path.name for path in (run / "predictions").glob("*.gz")} == rest and len(rest) == SCANS - len(labelled)
    for scan in (folder / f"new_{kind}").iterdir():
        label = nib.load(folder / f"labels_{kind}" / scan.name.replace(".nii", "_seg.nii"))
        assert label.shape == nib.load(scan).shape
        np.testing.assert_allclose(label.affine, nib.load(scan).affine, atol=1e-4)
    if kind == "ct":
        (label,) = (command for block in blocks() for command in block if command.startswith("make label"))
        model, studies = (folder / word.partition("=")[2] for word in shlex.split(label)[2:])
        assert (model / "models" / "model.pt").is_file() and (model / "models" / "model.json").is_file()
        assert {path.name for path in (studies / "labels" / "final").iterdir()} == labelled
    assert yaml.safe_load((run / "plan.yaml").read_text())["data"]["slice_axis"] == {"ct": 2, "mr": 0}[kind]
