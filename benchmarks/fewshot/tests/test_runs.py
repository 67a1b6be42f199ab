"""The cells of a grid, their settings, the processes that run them, and the files of stage 1."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from dataclasses import replace
from pathlib import Path
from pydoc import locate
from typing import Any

import pytest
import yaml
from monai.bundle import ConfigParser

from benchmarks.fewshot import HERE, ROOT, grid, run, run_process, stage_one
from benchmarks.fewshot.budget import FULL, QUICK, Budget
from benchmarks.fewshot.stage_one import clear_unfinished
from benchmarks.fewshot.tests.conftest import MakeStudy
from samora_monai.networks import SegmenterConfig, build_segmenter
from samora_monai.pipeline.bundle_process import FailedRun, Usage, bundle_command, copy_bundle
from tests.tiny import refused


def test_cells_of_the_whole_grid():
    rows = list(grid.all_rows("tiny"))
    cells = list(grid.cells(rows, [1, 4, 8], [0, 1, 2], "tiny"))
    assert len(rows) == 10 + 31 and len(cells) == len(set(cells)) == 3 * (10 * 3 + 31)
    assert {cell.labeled for cell in cells if cell.ablation} == {4}
    assert {cell.system for cell in cells if cell.ablation} == {grid.REFERENCE}
    assert [cell.seed for cell in cells] == [0] * 61 + [1] * 61 + [2] * 61  # seed by seed
    converging = {(cell.system, cell.labeled) for cell in cells if len(cell.milestones) > 1}
    assert converging == {("samed", 4), (grid.REFERENCE, 4)}
    assert [epoch / grid.EPOCHS for epoch in grid.MILESTONES] == [0.05, 0.1, 0.2, 0.5, 1]
    assert len({cell.name for cell in cells}) == len(cells)  # names of the logs


def test_ablations_and_convergence_have_their_own_number_of_scans():
    found = list(grid.cells(["samed", "sum"], [1, 2], [0], "tiny", few=2))
    assert [(cell.row, cell.labeled, len(cell.milestones)) for cell in found] == [
        ("samed", 1, 1),
        ("samed", 2, 5),
        ("sum", 2, 1),
    ]
    with refused("unknown row 'sums'", "without-pixel"):
        list(grid.cells(["sums"], [4], [0], "tiny"))


def test_every_setting_of_a_row_is_one_of_the_bundle():
    """A row's name of a setting that the bundle does not have would stop the run of a day at its last cells."""
    config = yaml.safe_load((ROOT / "bundles/samora_segmentation/configs/train.yaml").read_text())
    assert {name for row in grid.all_rows("vit_b").values() for name in row.settings} <= set(config)
    rows = grid.ablations("vit_b")
    assert rows["half-width"].settings["fusion_width"] == 384 and rows["quarter-width"].settings["fusion_width"] == 192
    fields = {field.name for field in dataclasses.fields(SegmenterConfig)} | {"fusion_start", "trainable"}
    for row in grid.all_rows("tiny").values():  # and the network can be built
        settings: dict[str, Any] = {"experts": ["task"]} | {k: v for k, v in row.settings.items() if k in fields}
        settings["train"] = settings.pop("trainable", "adapters")
        net = build_segmenter("tiny", image_size=112, **settings)
        assert net.image_encoder.experts == tuple(settings["experts"])


def test_steps_are_whole_epochs():
    with refused("steps is 30", "multiple of 20"):
        Budget(128, 128, 30, 1, 1, 1, 1, 1)
    assert FULL.steps % grid.EPOCHS == QUICK.steps % grid.EPOCHS == 0


def test_process_is_measured(tmp_path: Path):
    log = tmp_path / "logs" / "a.log"
    code = "import os; x = bytearray(300_000_000); print('threads', os.environ['OMP_NUM_THREADS'])"
    usage = run_process([sys.executable, "-c", code], log, 3)
    assert 300 < usage.memory_mb < 3000 and 0 < usage.seconds < 60 and usage.cpu_seconds > 0
    assert "threads 3" in log.read_text()
    with pytest.raises(FailedRun, match="its last line: too bad"):
        run_process([sys.executable, "-c", "raise SystemExit('too bad')"], log, 1)


def test_command_of_a_bundle(tmp_path: Path):
    command = bundle_command(
        tmp_path, "training", ["train.yaml", HERE / "milestones.yaml"], {"fusion": None, "experts": []}
    )
    assert command[2:6] == ["monai.bundle", "run", "training", "--config_file"]
    assert command[6] == str([f"{tmp_path}/configs/train.yaml", f"{HERE}/milestones.yaml"])
    assert command[7:] == ["--bundle_root", str(tmp_path), "--fusion", "None", "--experts", "[]"]


def test_second_run_is_kept_out_and_leftovers_are_cleared(tmp_path: Path):
    (tmp_path / "stage1" / "abc" / "running_1").mkdir(parents=True)
    with run.alone_in(tmp_path):
        assert not list(tmp_path.glob("**/running_*"))
        with refused("another run works in"), run.alone_in(tmp_path):
            pass
    with run.alone_in(tmp_path):
        pass
    clear_unfinished(tmp_path)


def test_settings_tell_grids_apart_but_not_places(tmp_path: Path, make_study: MakeStudy):
    """Steps, base and experts are in; the folder of the data is not."""
    (cell,) = grid.cells(["samora-block"], [4], [0], "tiny")
    settings = make_study().settings(cell)
    assert str(tmp_path) not in str(settings)
    assert settings["fusion"] == "block" and settings["steps"] == QUICK.steps
    assert settings["experts_from"].startswith("trained ")
    other = make_study(content=b"another").settings(cell)
    assert {name for name in settings if settings[name] != other[name]} == {"base", "experts_from"}
    (unet,) = grid.cells(["unet"], [4], [0], "tiny")
    assert make_study().settings(unet)["base"] == "none"


def test_settings_tell_another_augmentation(tmp_path: Path, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch):
    cell = grid.Cell("samed", "", 4, 0)
    settings = make_study().settings(cell)
    config = copy_bundle("samora_segmentation", tmp_path / "bundles" / "samora_segmentation") / "configs" / "train.yaml"
    monkeypatch.setattr("benchmarks.fewshot.cell.ROOT", tmp_path)
    assert make_study().settings(cell) == settings
    config.write_text(config.read_text().replace("rotate_range: 0.35", "rotate_range: 0.5"))
    assert {name for name, value in make_study().settings(cell).items() if settings[name] != value} == {"augmentation"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--encoder", "vit_b"], ("--encoder is vit_b", "--base FILE")),
        (["--base", "sam.pth"], ("'sam.pth' does not exist", "downloaded")),
        (["--labeled", "3", "--rows", "samed"], ("has 2 labelled scans", "3 were asked for", "--labeled")),
        (["--labeled", "1", "--rows", "sum"], ("has 2 labelled scans", "4 were asked for", "--few")),
    ],
)
def test_mistakes_stop_the_grid_before_it_starts(words: list[str], message: tuple[str, ...], tmp_path: Path):
    data = tmp_path / "data"
    for part in ("imagesTr", "labelsTr", "imagesVal", "labelsVal"):
        for case in (1, 2):
            (data / part).mkdir(parents=True, exist_ok=True)
            name = f"case_{'v' if 'Val' in part else ''}{case}.nii.gz"
            (data / part / name).write_text(f"{part} {case}")  # each scan once
    with refused(*message):
        run.check(run.parse([str(data), "--folder", str(tmp_path), *words]))
    run.check(run.parse([str(data), "--folder", str(tmp_path), "--labeled", "1", "2", "--few", "2"]))


def is_setting(config: dict[str, Any], key: str) -> bool:
    """Whether it is an entry of the config, or an argument of the class that the config names there."""
    *path, name = key.split("::")
    for part in path:
        config = config[part]
    target = config.get("_target_", "")
    found = locate(target if "." in target else f"monai.engines.{target}") if target else None
    return name in config or (callable(found) and name in inspect.signature(found).parameters)


def test_experts_are_made_once(tmp_path: Path, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch):
    """The commands of stage 1 with public teachers: known settings only, every file once, the public ones as asked."""
    runs: dict[str, dict[str, str]] = {}

    def fake(command: list[str], log: Path, threads: int) -> Usage:
        settings = dict(zip(command[7::2], command[8::2], strict=True))
        files = yaml.safe_load(command[6])
        config = ConfigParser()
        config.read_config(files)
        for key in settings:
            assert is_setting(config.get(), key.removeprefix("--")), (log.stem, key)
        models = Path(settings["--bundle_root"], "models")
        models.mkdir()
        (models / ("teacher.pt" if "teacher.yaml" in command[6] else "expert_last.pt")).write_text(log.stem)
        assert log.stem not in runs
        runs[log.stem] = settings
        return Usage(0, 0, 0)

    monkeypatch.setattr(stage_one, "run_process", fake)
    public = {level: tmp_path / f"{level}.pth" for level in ("image", "patch")}
    for path in public.values():
        path.write_bytes(b"public")
    small = make_study().stage_one
    maker = replace(small, public=public)
    assert maker.home != small.home
    for variant in ("trained", "raw", "public", "trained"):
        files = maker.experts(variant, 0)
        assert [file.read_text() for file in files.values()] == [
            f"image_{variant}",
            f"patch_{variant}",
            "pixel_trained",
        ]
    assert len(runs) == 2 + 3 + 2 + 2
    assert runs["image_teacher"]["--initial_checkpoint"] == runs["image_public"]["--teacher_checkpoint"]
    assert runs["image_public"]["--teacher_checkpoint"] == str(public["image"])
    assert runs["patch_raw"]["--teacher_checkpoint"] == str(maker.home / "patch_teacher.pt")
    assert runs["patch_raw"]["--normalize_target"] == "false" and "--normalize_target" not in runs["patch_trained"]
    assert runs["pixel_trained"]["--lr_scheduler::max_iterations"] == str(QUICK.expert_steps)
    assert not list(maker.home.glob("running_*"))
