"""`samora select`: from a folder of scans to the ones to label first."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from samora_monai.checkpoints import ModelSettings, load_sam, save_expert, write_model_settings
from samora_monai.data import ScanScaling
from samora_monai.networks import SegmenterConfig, build_segmenter
from samora_monai.pipeline import select
from samora_monai.pipeline.command import main
from tests.tiny import randomise, refused, truncate

SIZE = (32, 32, 12)


def write_scan(path: Path, kind: str, seed: int, lowest: float = 0.0) -> Path:
    """Blobs that become darker to the left (kind a) or to the right (b)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SIZE), 1)
    values = (
        (values - values.min())
        / np.ptp(values)
        * np.linspace(*(0.2, 1) if kind == "a" else (1, 0.2), SIZE[0])[:, None, None]
    )
    values = lowest + 1000 * values
    nib.save(nib.Nifti1Image(values.astype(np.int16), np.diag([2.0, 2, 4, 1])), path)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("base") / "sam2_mini.pt"
    net = build_segmenter("sam2_mini", 64, num_classes=4, experts=())
    randomise(net)
    torch.save(net.state_dict(), file)
    return file


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Six scans of one kind, a1 to a6, and three of another, b1 to b3."""
    folder = tmp_path / "scans"
    for kind, count in (("a", 6), ("b", 3)):
        for i in range(1, count + 1):
            write_scan(folder / f"{kind}{i}.nii.gz", kind, i + 10 * (kind == "b"))
    return folder


def run(folder: Path, base: Path | None, output: Path, *options: Any, budget: int = 2) -> list[str]:
    """Two letters of the name of each chosen scan."""
    parser = argparse.ArgumentParser()
    select.add_arguments(parser)
    own = [] if base is None else ["--encoder", "sam2_mini", "--sam_checkpoint", str(base)]
    size = [] if "--model" in options else ["--image_size", "64"]
    given = [str(folder), "--budget", str(budget), "--output", str(output), "--device", "cpu", *own, *size]
    return [Path(path).name[:2] for path in select.run(parser.parse_args([*given, *map(str, options)]))]


def table(output: Path) -> dict[str, dict[str, str]]:
    with open(output / "select.csv", newline="") as file:
        return {Path(row["scan"]).name[:2]: row for row in csv.DictReader(file)}


def test_one_scan_of_each_kind_is_chosen(scans: Path, base: Path, tmp_path: Path, capsys):
    chosen = run(scans, base, tmp_path / "out")
    assert [name[0] for name in chosen] == ["a", "b"]
    rows = table(tmp_path / "out")
    assert [rows[name]["stands_for"] for name in chosen] == ["6", "3"]
    assert {name for name, row in rows.items() if row["represented_by"].startswith(chosen[1])} == {"b1", "b2", "b3"}
    printed = capsys.readouterr().out
    assert f"1. {chosen[0]}.nii.gz  stands for 6 of 9: in the middle of its cluster" in printed
    assert "modality: MR: lowest value 0, so no Hounsfield units in 9 of 9 scans" in printed
    assert "slices: axial: the largest spacing, or equal ones, in 9 of 9 scans (2 x 2 x 4 mm)" in printed
    assert Image.open(tmp_path / "out" / "select.png").size[0] > 1000
    assert run(scans, base, tmp_path / "again") == chosen


def test_the_command_line_has_it(scans: Path, base: Path, tmp_path: Path, capsys):
    network = ["--encoder", "sam2_mini", "--sam_checkpoint", str(base), "--image_size", "64", "--device", "cpu"]
    options = [*network, "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        main(["select", str(scans), "--budget", "2", *options])
    assert not ended.value.code
    assert "label first:" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="error: budget is 9"):
        main(["select", str(scans), "--budget", "9", *options])


def test_labelled_scans_cover_their_neighbourhood(scans: Path, base: Path, tmp_path: Path):
    write_scan(scans / "labels" / "b1.nii.gz", "b", 0)
    assert [name[0] for name in run(scans, base, tmp_path / "out", budget=1)] == ["a"]
    rows = table(tmp_path / "out")
    assert rows["b1"]["why"] == "labelled"
    assert rows["b2"]["represented_by"] == "b1.nii.gz"


def test_scans_of_a_datalist_keep_their_part(scans: Path, base: Path, tmp_path: Path, capsys):
    write_scan(scans / "labels" / "b1.nii.gz", "b", 0)
    names = {path.name[:2]: str(path) for path in scans.glob("*.nii.gz")}
    held_out = [{"image": names.pop("b1"), "label": str(scans / "labels" / "b1.nii.gz")}]
    lists = {"validation": held_out, "unlabeled": [{"image": path} for path in names.values()]}
    (scans / "dataset.json").write_text(json.dumps({"modality": {"0": "MR"}} | lists))
    assert "b1" not in run(scans, base, tmp_path / "out")
    assert table(tmp_path / "out")["b1"]["why"] == "labelled, for validation"
    assert "modality: " not in capsys.readouterr().out


def test_one_scan_twice_is_chosen_once(scans: Path, base: Path, tmp_path: Path):
    """Two clusters of copies: only with the comparison are three different scans chosen."""
    folder = tmp_path / "copies"
    for i, name in enumerate(("a1", "a2", "b1")):
        for copy in "xyz":
            path = folder / f"{name}{copy}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            image = nib.load(scans / f"{name}.nii.gz")
            nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + i, image.affine), path)
    assert sorted(run(folder, base, tmp_path / "out", budget=3)) == ["a1", "a2", "b1"]
    with refused("budget is 4", "only 3 scans", "--budget 3"):
        run(folder, base, tmp_path / "out", budget=4)


def test_names_tell_the_patient(scans: Path, base: Path, tmp_path: Path):
    chosen = run(scans, base, tmp_path / "out", "--patient_pattern", r"\d", budget=6)
    assert sorted(name[1] for name in chosen) == list("123456")


def test_unreadable_scans_are_left_out_in_one_sentence_each(scans: Path, base: Path, tmp_path: Path, capsys):
    truncate(scans / "a1.nii.gz")
    truncate(scans / "a2.nii.gz")
    assert not {"a1", "a2"} & {*run(scans, base, tmp_path / "out")}
    printed = capsys.readouterr().out.splitlines()
    left_out = [line for line in printed if line.startswith("left out: ")]
    assert [name in line for name, line in zip(("a1.nii.gz", "a2.nii.gz"), left_out, strict=True)] == [True, True]
    assert "read 7 scans without a label" in "\n".join(printed)
    with refused("budget is 7", "7 readable scans"):
        run(scans, base, tmp_path / "out", budget=7)


def test_a_budget_out_of_range_is_one_sentence(scans: Path, base: Path, tmp_path: Path):
    for budget, words in ((0, "--budget 1 to 8"), (9, "or label all 9"), (-1, "--budget 1 to 8")):
        with refused(f"budget is {budget}", "9 scans have no label", words):
            run(scans, base, tmp_path / "out", budget=budget)
    write_scan(tmp_path / "one" / "a1.nii.gz", "a", 1)
    with refused("found 1 scans without a label"):
        run(tmp_path / "one", base, tmp_path / "out", budget=1)


def test_results_among_the_scans_are_refused(scans: Path, base: Path):
    for output in (scans, scans / "out"):
        with refused("among the scans", "--output"):
            run(scans, base, output)
        assert not (scans / "out").exists()


def test_ct_is_known_by_its_values(base: Path, tmp_path: Path, capsys):
    for i in range(3):
        write_scan(tmp_path / "ct" / f"a{i}.nii.gz", "a", i, lowest=-1000)
    run(tmp_path / "ct", base, tmp_path / "out", budget=1)
    assert "modality: CT" in capsys.readouterr().out


def test_modality_and_slices_are_those_of_a_plan(base: Path, tmp_path: Path, capsys):
    """Thick sagittal slices; the first scan alone does not tell the modality."""
    thick = np.diag([5.0, 1, 1, 1])
    for i, name in enumerate(("a1", "a2", "b1")):
        path = write_scan(tmp_path / "mr" / f"{name}.nii.gz", name[0], i)
        nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj) - 100 * (i == 0), thick), path)
    run(tmp_path / "mr", base, tmp_path / "out", budget=1)
    printed = capsys.readouterr().out
    assert "modality: MR: lowest value 0, so no Hounsfield units in 2 of 3 scans" in printed
    assert "slices: sagittal: the largest spacing, or equal ones, in 3 of 3 scans (5 x 1 x 1 mm)" in printed
    write_scan(tmp_path / "mr" / "c1.nii.gz", "a", 5, lowest=-1000)
    with refused("holds scans of two modalities", "c1.nii.gz' looks like CT", "--modality"):
        run(tmp_path / "mr", base, tmp_path / "out", budget=1)


def test_pictures_and_arrays_are_not_chosen(scans: Path, base: Path, tmp_path: Path, capsys):
    for name in ("c1", "c2", "c3"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32), np.uint8)).save(scans / f"{name}.png")
    np.save(scans / "c4.npy", np.zeros((4, 5, 6)))
    assert [name[0] for name in run(scans, base, tmp_path / "out", budget=3)].count("c") == 0
    assert f"left out: 4 pictures and arrays, the first '{scans / 'c1.png'}'" in capsys.readouterr().out
    assert len(table(tmp_path / "out")) == 9
    with refused("budget is 9", "9 scans have no label"):
        run(scans, base, tmp_path / "out", budget=9)


def test_experts_belong_to_their_base(scans: Path, base: Path, tmp_path: Path, capsys):
    net = build_segmenter("sam2_mini", 64, experts=("patch",))
    randomise(net, seed=1)
    load_sam(net, base)
    save_expert(net, tmp_path / "patch.pt", "patch")
    plain = run(scans, base, tmp_path / "out")
    assert len(run(scans, base, tmp_path / "experts", "--experts", tmp_path / "patch.pt")) == len(plain)
    assert "experts: " in capsys.readouterr().out
    distances = [[row["distance"] for row in table(tmp_path / name).values()] for name in ("out", "experts")]
    assert distances[0] != distances[1]
    randomise(net, seed=2)
    torch.save({k: v for k, v in net.state_dict().items() if "experts" not in k}, tmp_path / "sam2_mini.pt")
    with refused("base_sha256", "patch.pt"):
        run(scans, tmp_path / "sam2_mini.pt", tmp_path / "out", "--experts", tmp_path / "patch.pt")


def test_a_trained_model_brings_its_settings(scans: Path, tmp_path: Path, base: Path, capsys):
    config = SegmenterConfig("sam2_mini", 64, num_classes=2, experts=())
    net = build_segmenter(config)
    randomise(net)
    file = tmp_path / "run" / "samora" / "models" / "model.pt"
    file.parent.mkdir(parents=True)
    torch.save(net.state_dict(), file)
    write_model_settings(file, ModelSettings(config, ScanScaling("MR"), ("background", "organ")))
    chosen = run(scans, None, tmp_path / "out", "--model", tmp_path / "run")
    assert [name[0] for name in chosen] == ["a", "b"]
    assert "modality: " not in capsys.readouterr().out
    with refused("no trained model in"):
        run(scans, None, tmp_path / "out", "--model", tmp_path)
    with refused("--model and --encoder"):
        run(scans, base, tmp_path / "out", "--model", tmp_path / "run")
