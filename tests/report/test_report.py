"""Per-case metrics of an evaluation, in files and in the log."""

from __future__ import annotations

import csv
import os
from math import isnan
from typing import Any

import ignite.distributed as idist
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from samora_monai.checkpoints.model_settings import ModelSettings
from samora_monai.data.datalist import Cases
from samora_monai.errors import InputError
from samora_monai.inference.uncertainty import ENTROPY
from samora_monai.metrics import ClassMetrics, case_metrics
from samora_monai.report import case_report as report
from samora_monai.report.case_report import CaseReport
from samora_monai.report.case_slices import select_slices
from samora_monai.report.class_summary import METRICS, summarize
from samora_monai.report.provenance import Provenance

NAMES = ["background", "liver", "spleen"]
MODEL = ModelSettings.from_dict({"encoder": "tiny", "class_names": NAMES})
SPACING = (0.5, 1.0, 4.0)


def item(path, pred_x=1, classes=(1,), entropy=None):
    """A case with organs of two voxels; the prediction is shifted along x."""
    affine = torch.diag(torch.tensor([-SPACING[0], -SPACING[1], SPACING[2], 1.0]))
    label, pred = torch.zeros(1, 8, 8, 8), torch.zeros(1, 8, 8, 8)
    for c in classes:
        label[0, 1:3, c * 2, 1] = c
        pred[0, pred_x : pred_x + 2, c * 2, 1] = c
    image = MetaTensor(torch.zeros(1, 8, 8, 8), affine=affine, meta={"filename_or_obj": path})
    meta = {} if entropy is None else {ENTROPY: entropy}
    pred = MetaTensor(pred, affine=affine, meta=meta)
    return {"image": image, "label": MetaTensor(label, affine=affine), "pred": pred}


def provenance(folder):
    weights = folder.parent / "model.pt"
    weights.write_bytes(b"weights")
    return Provenance(Cases((), (), (), None, None, "data"), weights, MODEL, "cpu")


def evaluate(folder, *batches):
    engine: Any = Engine(lambda engine, batch: batch)
    CaseReport(folder, MODEL, provenance(folder)).attach(engine)
    engine.run(batches)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_files_and_log_hold_the_metrics(tmp_path, caplog):
    caplog.set_level("INFO", "samora_monai")
    out = tmp_path / "eval"
    evaluate(out, [item("/d/b.nii.gz", 2, (1, 2))], [item("/d/a.nii.gz", 1, (1,))])
    rows = rows_of(out / "metrics.csv")
    assert list(rows[0]) == ["case", "class", "name", "dice", "hd95_mm", "hd95_voxels", "samed_dice", "samed_hd95"]
    assert [(r["case"], r["class"], r["name"]) for r in rows] == [
        ("a", "1", "liver"), ("a", "2", "spleen"), ("b", "1", "liver"), ("b", "2", "spleen"),
    ]  # fmt: skip
    assert [float(r["dice"]) for r in rows] == pytest.approx([1.0, np.nan, 0.5, 0.5], nan_ok=True)
    # two voxels each, shifted by one: distances 0 and 1 per direction, 0.95 between them
    assert float(rows[2]["hd95_voxels"]) == pytest.approx(0.95, abs=1e-5)
    assert float(rows[2]["hd95_mm"]) == pytest.approx(0.95 * SPACING[0], abs=1e-5)
    assert rows[1]["samed_dice"] == "0.000000"
    liver, spleen, mean = rows_of(out / "summary.csv")
    assert (liver["name"], liver["cases"], float(liver["dice"])) == ("liver", "2", 0.75)
    assert (spleen["cases"], float(spleen["dice"]), float(spleen["samed_dice"])) == ("1", 0.5, 0.25)
    assert (mean["name"], float(mean["dice"])) == ("mean", 0.625)
    assert sorted(os.listdir(out)) == ["cases.csv", "metrics.csv", "report.html", "summary.csv"]
    printed = "\n".join(caplog.messages).splitlines()
    assert printed[0] == "b  mean Dice 0.500  (liver 0.500  spleen 0.500)"
    assert printed[1] == "a  mean Dice 1.000  (liver 1.000  spleen nan)"
    assert printed[2].split() == ["name", "cases", "missed", "false_alarms", *METRICS]
    assert printed[-2].split()[:5] == ["mean", "3", "0", "0", "0.625"]
    assert printed[-1] == f"2 cases; details in {out / 'metrics.csv'} and report.html"


def test_failures_are_counted():
    label = np.zeros((4, 4, 4), int)
    label[1, 1, 1] = 1
    cases = {
        "missed": case_metrics(np.zeros_like(label), label, 3, (1, 1, 1)),
        "false alarm": case_metrics(label * 2, label * 0, 3, (1, 1, 1)),
    }
    liver, spleen, mean = summarize(cases, NAMES)
    assert (liver.cases, liver.missed, liver.false_alarms) == (1, 1, 0)
    assert (spleen.cases, spleen.missed, spleen.false_alarms) == (0, 0, 1)
    assert liver.means["dice"] == 0.0 and isnan(spleen.means["dice"]) and mean.means["dice"] == 0.0
    assert spleen.means["samed_dice"] == 0.5


def test_cases_of_all_ranks_count_once(tmp_path, monkeypatch):
    """The other rank has evaluated `z` and also `a`; it sends the metrics of `z`, then its entropy and its slices."""
    rows = [ClassMetrics(c, 0.2, 3.0, 3.0, 0.2, 3.0) for c in (1, 2)]
    z = item("/d/z.nii.gz", 2)
    slices = select_slices(z["image"], z["label"], z["pred"], rows)
    asked = []

    def all_gather(own):
        asked.append(list(own))
        other = {"/d/z.nii.gz": [rows, 0.75, slices][len(asked) - 1]}
        return [own, {**other, **own}]

    monkeypatch.setattr(idist, "all_gather", all_gather)
    evaluate(tmp_path, [item("/d/a.nii.gz", entropy=0.25)])
    assert asked == [["/d/a.nii.gz"], ["/d/a.nii.gz"], ["/d/a.nii.gz"]]
    assert [(r["case"], r["entropy"]) for r in rows_of(tmp_path / "cases.csv")] == [
        ("a", "0.250000"),
        ("z", "0.750000"),
    ]
    assert [r["case"] for r in rows_of(tmp_path / "metrics.csv")] == ["a", "a", "z", "z"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Worst case: <bdi>z</bdi>, mean Dice 0.200" in page and "Best case: <bdi>a</bdi>, mean Dice 1.000" in page


def test_equal_names_get_their_folders(tmp_path):
    evaluate(tmp_path, [item("/d/p1/ct.nii.gz"), item("/d/p2/ct.nii.gz"), item("/d/p2/mr.nii.gz")])
    assert [r["case"] for r in rows_of(tmp_path / "metrics.csv")[::2]] == ["mr", "p1/ct", "p2/ct"]


def test_equal_names_in_one_folder_get_their_paths(tmp_path):
    evaluate(tmp_path, [item("/d/ct.nii.gz"), item("/d/ct.nii"), item("/d/mr.nii.gz")])
    assert [r["case"] for r in rows_of(tmp_path / "metrics.csv")[::2]] == ["/d/ct.nii", "/d/ct.nii.gz", "mr"]


def test_refuses_volumes_on_different_grids(tmp_path):
    broken = item("/d/a.nii.gz")
    broken["pred"] = torch.zeros(3, 8, 8, 8)
    with pytest.raises(InputError, match=r"\[3, 8, 8, 8\] and label \[1, 8, 8, 8\] of '/d/a.nii.gz'"):
        evaluate(tmp_path, [broken])
    broken = item("/d/a.nii.gz")
    broken["image"] = MetaTensor(torch.zeros(1, 8, 8, 4), meta={"filename_or_obj": "/d/a.nii.gz"})
    with pytest.raises(InputError, match=r"image \[1, 8, 8, 4\] and label \[1, 8, 8, 8\] of '/d/a.nii.gz'"):
        evaluate(tmp_path, [broken])
    broken["label"] = torch.zeros(1, 8, 8, 8)
    with pytest.raises(InputError, match="has no affine"):
        evaluate(tmp_path, [broken])


def test_refuses_a_process_without_a_case(tmp_path):
    engine: Any = Engine(lambda engine, batch: batch)
    engine.state.epoch_length = 0
    with pytest.raises(InputError, match="fewer cases than processes"):
        CaseReport(tmp_path, MODEL, provenance(tmp_path)).attach(engine)


def test_file_name_that_is_not_utf8_is_escaped(tmp_path, caplog):
    caplog.set_level("INFO", "samora_monai")
    evaluate(tmp_path, [item("/d/p\udcff.nii.gz")])
    assert [r["case"] for r in rows_of(tmp_path / "metrics.csv")] == ["p\\udcff"] * 2
    assert caplog.messages[0].startswith("p\\udcff  mean Dice 1.000")


def test_failed_page_leaves_the_tables_and_no_partial_file(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "samora_monai")

    def fail(*args):
        raise RuntimeError("no page")

    monkeypatch.setattr(report, "report_page", fail)
    with pytest.raises(RuntimeError, match="no page"):
        evaluate(tmp_path / "out", [item("/d/a.nii.gz")])
    assert sorted(os.listdir(tmp_path / "out")) == ["cases.csv", "metrics.csv", "summary.csv"]
    assert "mean" in caplog.text
