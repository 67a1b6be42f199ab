"""The CSV of a grid, its tables and its plots."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from benchmarks.fewshot import HERE, grid, table
from benchmarks.fewshot.budget import QUICK
from benchmarks.fewshot.cell import read_scores
from benchmarks.fewshot.results import Results, key_of, read_rows
from benchmarks.fewshot.spread import estimate
from benchmarks.fewshot.tests.conftest import MakeStudy
from tests.tiny import refused

SCORES = {"dice atrium": "0.8", "dice mean": "0.8", "hd95_voxels": "5.0"}
COSTS = {"seconds": "60", "cpu_seconds": "120", "memory_mb": "1500", "device": "CPU", "versions": "", "settings": "{}"}


def rows_of(*fractions: float, dice: float = 0.8) -> list[dict[str, Any]]:
    scores = SCORES | {"dice mean": dice, "dice atrium": dice}
    return [{"fraction": f"{part:g}", "steps": 100 * part, **scores, **COSTS} for part in fractions]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """SAMed 70, 71, 72 at the end; SAMora 10 more, and better than SAMed's end after a tenth; one ablation 2 lower."""
    results = Results(tmp_path / "results.csv")
    for cell in grid.cells(["samed", grid.REFERENCE, "sum"], [1, 4], [0, 1, 2], "tiny"):
        best = 0.7 + 0.01 * cell.seed + 0.1 * (cell.system != "samed") - 0.02 * bool(cell.ablation)
        rows = [row for e in cell.milestones for row in rows_of(e / 20, dice=best - 0.09 * (e < 2) - 0.05 * (e < 20))]
        results.add(cell, rows)
    return tmp_path


def test_results_are_resumed(tmp_path: Path):
    file = tmp_path / "results.csv"
    first, second = grid.cells(["samed"], [4], [0, 1], "tiny")
    results = Results(file)
    assert not results.has(first, {})
    results.add(first, rows_of(0.05, 1))
    again = Results(file)
    assert again.has(first, {}) and not again.has(second, {})
    again.add(second, [row | {"dice wall": "0.5"} for row in rows_of(1)])  # another column
    rows = read_rows(file)
    assert [(row["seed"], row["fraction"], row["dice wall"]) for row in rows] == [
        ("0", "0.05", ""),
        ("0", "1", ""),
        ("1", "1", "0.5"),
    ]
    with refused("samed_4_scans_seed_0", "other settings (steps)", "--folder"):
        again.has(first, {"steps": 300})


def test_results_are_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "results.csv"
    first, second = grid.cells(["samed"], [4], [0, 1], "tiny")
    results = Results(file)
    results.add(first, rows_of(1))
    before = file.read_bytes()

    def killed(self: Any, rows: Any) -> None:
        self.writerow(rows[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(csv.DictWriter, "writerows", killed)
    with pytest.raises(KeyboardInterrupt):
        results.add(second, rows_of(1))
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_another_csv_is_refused(tmp_path: Path):
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with refused("no column 'system'", "--folder"):
        Results(tmp_path / "results.csv")


def test_cells_of_the_published_results_are_found(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch):
    """Their settings, and so the hash of the augmentation, are those of the bundle today."""
    results = Results(HERE / "quick.csv")
    for module in ("cell", "stage_one"):
        monkeypatch.setattr(f"benchmarks.fewshot.{module}.file_hash", lambda _: "6fa732a923a9")  # tiny.pt
    study = make_study(QUICK, datalist="dataset_8.json")
    on_the_way = {key_of(row) for row in results.rows if float(row["fraction"]) < 1}  # made with --few of their scans
    for key in {key_of(row) for row in results.rows}:
        system, ablation, labeled, seed = key
        few = int(labeled) if ablation or key in on_the_way else grid.FEW
        (cell,) = grid.cells([ablation or system], [int(labeled)], [int(seed)], "tiny", few)
        assert results.has(cell, study.settings(cell))


def test_scores_of_an_evaluation(tmp_path: Path):
    file = tmp_path / "summary.csv"
    file.write_text("name,cases,dice,hd95_voxels\natrium,6,0.81,4.5\nmean,6,0.81,4.5\n")
    assert read_scores(file) == {"dice atrium": "0.81", "dice mean": "0.81", "hd95_voxels": "4.5"}


def test_spread_over_seeds():
    found = estimate([70.0, 71.0, 72.0])
    assert found is not None and found.mean == 71 and found.count == 3
    assert found.high - 71 == pytest.approx(4.302653 / 3**0.5, rel=1e-6)  # Student's t with two degrees of freedom
    assert found.text() == "71.0 ± 2.5 (3)"
    assert str(estimate([1.0, float("nan"), 2.0]).text(signed=True)) == "+1.5 [+1.0, +2.0] (2)"  # type: ignore[union-attr]
    assert estimate([2.0]).text() == "2.0 (1)" and estimate([]) is None  # type: ignore[union-attr]


def test_tables(finished: Path):
    rows = read_rows(finished / "results.csv")
    systems = {row[0]: row[1:] for row in table.systems_table(rows)}
    assert systems["system"] == ["Dice, 1 scan", "Dice, 4 scans", "HD95, 1 scan", "HD95, 4 scans"]
    assert systems["SAMed"] == ["71.0 ± 2.5 (3)", "71.0 ± 2.5 (3)", "5.0 ± 0.0 (3)", "5.0 ± 0.0 (3)"]
    assert systems["SAMora, attention"][1] == "81.0 ± 2.5 (3)" and systems["H-SAM"] == ["not run"] * 4
    ablations = {row[0]: row[1:] for row in table.ablations_table(rows)}
    assert ablations["as it is"] == ["81.0 ± 2.5 (3)", ""]
    assert ablations["plain sum, experts frozen"] == ["79.0 ± 2.5 (3)", "-2.0 ± 0.0 (3)"]  # of the same seeds
    assert ablations["teachers not continued"] == ["not run", ""]
    convergence = table.convergence_table(rows)
    assert convergence[0] == ["system", "5 %", "10 %", "20 %", "50 %", "100 %", "SAMed's last Dice after"]
    assert convergence[1][-2:] == ["71.0 ± 2.5 (3)", "100 %"] and convergence[1][1].startswith("57.0")
    assert convergence[2][1].startswith("67.0") and convergence[2][-1] == "10 %"
    assert table.classes_table(rows)[1] == ["SAMed", "1", "71.0 ± 2.5 (3)"]
    assert table.costs_table(rows)[1] == ["SAMed", "1.0", "2.0", "1.50"]


def test_ablations_of_two_numbers_of_scans(finished: Path):
    results = Results(finished / "results.csv")
    for cell in grid.cells(["sum"], [], [0, 1, 2], "tiny", few=1):
        results.add(cell, rows_of(1, dice=0.6 + 0.01 * cell.seed))
    ablations = {row[0]: row[1:] for row in table.ablations_table(results.rows)}
    assert ablations["SAMora"] == ["Dice, 1 scan", "difference", "Dice, 4 scans", "difference"]
    assert ablations["plain sum, experts frozen"][1::2] == ["-20.0 ± 0.0 (3)", "-2.0 ± 0.0 (3)"]
    assert ablations["teachers not continued"] == ["not run", "", "not run", ""]


def test_report_and_plots(finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["table.py", str(finished)])
    table.main()
    text = (finished / "tables.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("|---"):
            assert line.count("|") == lines[number - 1].count("|") == lines[number + 1].count("|")
    for name in ("dice_over_scans.png", "dice_over_steps.png"):
        pixels = matplotlib.image.imread(finished / name)[..., :3]
        colours = {tuple(colour) for colour in np.round(255 * pixels.reshape(-1, 3)).astype(int).tolist()}
        assert {(31, 119, 180), (255, 127, 14)} <= colours  # a line for SAMed and one for SAMora
        assert (44, 160, 44) not in colours
