"""The few-shot benchmark around its trainings: cells, CSV, tables, processes; and settings that its ablations need."""

from __future__ import annotations

import csv
import inspect
import sys
from dataclasses import replace
from pathlib import Path
from pydoc import locate
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
import yaml
from ignite.engine import Engine

from samora_monai.checkpoints import load_expert, load_sam, save_expert
from samora_monai.checkpoints.files import write_checkpoint
from samora_monai.checkpoints.settings import read_settings
from samora_monai.networks import LEVELS, build_segmenter, set_trainable
from tests.tiny import TINY, image, refused, tiny

FOLDER = Path(__file__).parents[1] / "benchmarks" / "fewshot"
sys.path.append(str(FOLDER))  # a folder of scripts, no package

import grid  # noqa: E402
import probe  # noqa: E402
import random_experts  # noqa: E402
import run  # noqa: E402
import stage_one  # noqa: E402
import table  # noqa: E402
from budget import FULL, QUICK, Budget  # noqa: E402
from bundle_process import FailedRun, Usage, bundle_command, copy_bundle, run_process  # noqa: E402
from cell import Study, read_scores  # noqa: E402
from milestones import KeepModels, model_at  # noqa: E402
from results import Results, read_rows  # noqa: E402
from spread import estimate  # noqa: E402
from stage_one import StageOne, clear_unfinished  # noqa: E402
from unet import StretchedUNet  # noqa: E402

# ---- cells


def test_cells_of_the_whole_grid():
    rows = list(grid.all_rows("tiny"))
    cells = list(grid.cells(rows, [1, 4, 8], [0, 1, 2], "tiny"))
    assert len(rows) == 7 + 14 and len(cells) == len(set(cells)) == 3 * (7 * 3 + 14)
    assert {cell.labeled for cell in cells if cell.ablation} == {4}
    assert {cell.system for cell in cells if cell.ablation} == {grid.REFERENCE}
    assert [cell.seed for cell in cells] == [0] * 35 + [1] * 35 + [2] * 35  # seed by seed
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
    config = yaml.safe_load((FOLDER.parents[1] / "bundles/samora_segmentation/configs/train.yaml").read_text())
    assert {name for row in grid.all_rows("vit_b").values() for name in row.settings} <= set(config)
    rows = grid.ablations("vit_b")
    assert rows["half-width"].settings["fusion_width"] == 384 and rows["quarter-width"].settings["fusion_width"] == 192
    for row in grid.all_rows("tiny").values():  # and the network can be built
        settings: dict[str, Any] = {"experts": ["task"]} | row.settings
        settings["train"] = settings.pop("trainable", "adapters")
        net = build_segmenter("tiny", image_size=112, **settings)
        assert net.image_encoder.experts == tuple(settings["experts"])


def test_steps_are_whole_epochs():
    with refused("steps is 30", "multiple of 20"):
        Budget(128, 128, 30, 1, 1, 1, 1, 1)
    assert FULL.steps % grid.EPOCHS == QUICK.steps % grid.EPOCHS == 0


# ---- the CSV

SCORES = {"dice atrium": "0.8", "dice mean": "0.8", "hd95_voxels": "5.0"}
COSTS = {"seconds": "60", "cpu_seconds": "120", "memory_mb": "1500", "device": "CPU", "versions": "", "settings": "{}"}


def rows_of(*fractions: float, dice: float = 0.8) -> list[dict[str, Any]]:
    scores = SCORES | {"dice mean": dice, "dice atrium": dice}
    return [{"fraction": f"{part:g}", "steps": 100 * part, **scores, **COSTS} for part in fractions]


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


def test_scores_of_an_evaluation(tmp_path: Path):
    file = tmp_path / "summary.csv"
    file.write_text("name,cases,dice,hd95_voxels\natrium,6,0.81,4.5\nmean,6,0.81,4.5\n")
    assert read_scores(file) == {"dice atrium": "0.81", "dice mean": "0.81", "hd95_voxels": "4.5"}


# ---- processes


def test_process_is_measured(tmp_path: Path):
    log = tmp_path / "logs" / "a.log"
    code = "import os; x = bytearray(300_000_000); print('threads', os.environ['OMP_NUM_THREADS'])"
    usage = run_process([sys.executable, "-c", code], log, 3)
    assert 300 < usage.memory_mb < 3000 and 0 < usage.seconds < 60 and usage.cpu_seconds > 0
    assert "threads 3" in log.read_text()
    with pytest.raises(FailedRun, match="it said last: too bad"):
        run_process([sys.executable, "-c", "raise SystemExit('too bad')"], log, 1)


def test_command_of_a_bundle(tmp_path: Path):
    command = bundle_command(
        tmp_path, "training", ["train.yaml", FOLDER / "milestones.yaml"], {"fusion": None, "experts": []}
    )
    assert command[2:6] == ["monai.bundle", "run", "training", "--config_file"]
    assert command[6] == str([f"{tmp_path}/configs/train.yaml", f"{FOLDER}/milestones.yaml"])
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


def study(tmp_path: Path, budget: Budget = QUICK, content: bytes = b"base") -> Study:
    (tmp_path / "base.pt").write_bytes(content)
    data = {"dataset_dir": tmp_path, "datalist": "dataset.json", "modality": "MR"}
    return Study(tmp_path, StageOne(tmp_path, tmp_path / "base.pt", "tiny", data, budget), budget)


def test_settings_tell_grids_apart_but_not_places(tmp_path: Path):
    """Steps, base and experts are in; the folder of the data is not."""
    (cell,) = grid.cells(["samora-block"], [4], [0], "tiny")
    settings = study(tmp_path).settings(cell)
    assert str(tmp_path) not in str(settings)
    assert settings["fusion"] == "block" and settings["steps"] == QUICK.steps
    assert settings["experts_from"].startswith("trained ")
    other = study(tmp_path, content=b"another").settings(cell)
    assert {name for name in settings if settings[name] != other[name]} == {"base", "experts_from"}
    (unet,) = grid.cells(["unet"], [4], [0], "tiny")
    assert study(tmp_path).settings(unet)["base"] == "none"


def test_settings_tell_another_augmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cell = grid.Cell("samed", "", 4, 0)
    settings = study(tmp_path).settings(cell)
    config = copy_bundle("samora_segmentation", tmp_path / "bundles" / "samora_segmentation") / "configs" / "train.yaml"
    monkeypatch.setattr("cell.ROOT", tmp_path)
    assert study(tmp_path).settings(cell) == settings
    config.write_text(config.read_text().replace("rotate_range: 0.35", "rotate_range: 0.5"))
    assert {name for name, value in study(tmp_path).settings(cell).items() if settings[name] != value} == {
        "augmentation"
    }


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
            (data / part / f"case_{'v' if 'Val' in part else ''}{case}.nii.gz").write_bytes(b"")
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


def test_experts_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The commands of stage 1 with public teachers: known settings only, every file once, the public ones as asked."""
    runs: dict[str, dict[str, str]] = {}

    def fake(command: list[str], log: Path, threads: int) -> Usage:
        settings = dict(zip(command[7::2], command[8::2], strict=True))
        (config,) = map(Path, yaml.safe_load(command[6]))
        for key in settings:
            assert is_setting(yaml.safe_load(config.read_text()), key.removeprefix("--")), (log.stem, key)
        models = Path(settings["--bundle_root"], "models")
        models.mkdir()
        (models / ("teacher.pt" if "teacher" in config.name else "expert_last.pt")).write_text(log.stem)
        assert log.stem not in runs
        runs[log.stem] = settings
        return Usage(0, 0, 0)

    monkeypatch.setattr(stage_one, "run_process", fake)
    public = {level: tmp_path / f"{level}.pth" for level in ("image", "patch")}
    for path in public.values():
        path.write_bytes(b"public")
    small = study(tmp_path).stage_one
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


# ---- probe


def test_average_precision():
    truth = torch.tensor([True, False, True, False])
    assert probe.average_precision(torch.tensor([4.0, 3.0, 2.0, 1.0]), truth) == pytest.approx((1 + 2 / 3) / 2)
    assert probe.average_precision(torch.tensor([1.0, 4.0, 2.0, 3.0]), truth) == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_probe_finds_what_the_tokens_tell_and_the_place_does_not():
    generator = torch.Generator().manual_seed(0)

    def scan() -> probe.Scan:
        patches = (torch.rand(6, 1, probe.GRID, probe.GRID, generator=generator) > 0.8).float()
        return torch.nn.functional.interpolate(patches, scale_factor=16), patches

    def tokens(image: torch.Tensor) -> torch.Tensor:
        inside = torch.nn.functional.avg_pool2d(image, 16)
        return torch.cat([inside, 1 - inside, torch.zeros_like(inside)], 1)

    known, new = [scan(), scan()], [scan()]
    assert probe.probe(tokens, known, new) == pytest.approx([1.0])
    assert probe.probe(None, known, new)[0] < 0.4


def test_probe_of_a_folder_without_a_study_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "a.nii.gz").touch()
    (tmp_path / "stage1" / "home").mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["probe.py", str(tmp_path), "--folder", str(tmp_path)])
    with pytest.raises(SystemExit, match="1 scans have labels, and 4 are learned from"):
        probe.main()
    (tmp_path / "stage1" / "other").mkdir()
    with pytest.raises(SystemExit, match="has 2 folders in stage1, expected one"):
        probe.main()


# ---- tables and plots


def test_spread_over_seeds():
    found = estimate([70.0, 71.0, 72.0])
    assert found is not None and found.mean == 71 and found.count == 3
    assert found.high - 71 == pytest.approx(4.302653 / 3**0.5, rel=1e-6)  # Student's t with two degrees of freedom
    assert found.text() == "71.0 ± 2.5 (3)"
    assert str(estimate([1.0, float("nan"), 2.0]).text(signed=True)) == "+1.5 [+1.0, +2.0] (2)"  # type: ignore[union-attr]
    assert estimate([2.0]).text() == "2.0 (1)" and estimate([]) is None  # type: ignore[union-attr]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """SAMed 70, 71, 72 at the end; SAMora 10 more, and better than SAMed's end after a tenth; one ablation 2 lower."""
    results = Results(tmp_path / "results.csv")
    for cell in grid.cells(["samed", grid.REFERENCE, "sum"], [1, 4], [0, 1, 2], "tiny"):
        best = 0.7 + 0.01 * cell.seed + 0.1 * (cell.system != "samed") - 0.02 * bool(cell.ablation)
        rows = [row for e in cell.milestones for row in rows_of(e / 20, dice=best - 0.09 * (e < 2) - 0.05 * (e < 20))]
        results.add(cell, rows)
    return tmp_path


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


# ---- what stands beside the bundles


def test_models_of_the_milestones_are_kept(tmp_path: Path):
    net = torch.nn.Linear(1, 1, bias=False)

    def step(engine: Engine, batch: int) -> None:
        net.weight.data.fill_(engine.state.epoch)

    trainer = Engine(step)
    KeepModels(tmp_path / "model.pt", net, {"encoder": "tiny"}, [2, 4]).attach(trainer)
    trainer.run([0], max_epochs=4)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        f"model_{n}.{end}" for n in (2, 4) for end in ("json", "pt")
    ]
    for epoch in (2, 4):
        file = model_at(tmp_path / "model.pt", epoch)
        assert float(torch.load(file, weights_only=True)["weight"]) == epoch
        assert read_settings(file) == {"encoder": "tiny"}


def test_unet_stretches_and_standardises():
    torch.manual_seed(0)
    net = StretchedUNet(3, 32).eval()
    x = image(2, 1, 40, 24)
    logits = net(x)
    assert logits.shape == (2, 3, 40, 24)
    assert torch.allclose(net(0.5 * x + 0.2), logits, atol=0.05)  # grey levels are standardised, up to the 1e-3
    assert 1.6e6 < sum(p.numel() for p in net.parameters()) < 1.7e6


@torch.no_grad()
def test_random_experts_have_the_trained_norms():
    net = tiny(experts=["patch"])
    expert = net.image_encoder.blocks[1].attn.experts["patch"]
    trained = [delta.clone() for delta in expert.deltas()]
    torch.manual_seed(1)
    random_experts.randomise_experts(net)
    for before, after in zip(trained, expert.deltas(), strict=True):
        assert float(after.norm()) == pytest.approx(float(before.norm()), rel=1e-5)
        assert abs(float((before * after).sum() / (before.norm() * after.norm()))) < 0.2  # another direction


# ---- settings of the network that the ablations need


def test_fusion_starts_from_zero_or_not():
    settings: dict[str, Any] = {"experts": LEVELS, "fusion": "attention"}
    for start, zero in (("zero", True), ("random", False)):
        net = build_segmenter(TINY, 64, fusion_start=start, **settings)
        projections = [p for n, p in net.named_parameters() if "hl_attn" in n and n.endswith("proj.weight")]
        assert len(projections) == 2 * 2 and all(bool((p == 0).all()) is zero for p in projections)
    with refused("unknown fusion_start 'noise'", "'zero' or 'random'"):
        build_segmenter(TINY, 64, fusion_start="noise", **settings)


def test_experts_train_beside_hl_attn():
    net = tiny(experts=LEVELS, fusion="attention")
    adapters = set(set_trainable(net, "adapters"))
    both = set(set_trainable(net, "adapters+experts"))
    assert both == adapters | set(set_trainable(net, "experts")) and len(both - adapters) == 2 * 3 * 4
    assert any(".hl_attn." in name for name in both)


def test_random_experts_as_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base = build_segmenter("tiny", 112, experts=())
    write_checkpoint(base.state_dict(), tmp_path / "base.pt")
    files = []
    for level in LEVELS:
        net = build_segmenter("tiny", 112, experts=[level])
        load_sam(net, tmp_path / "base.pt")
        torch.nn.init.ones_(net.image_encoder.blocks[0].attn.experts[level].linear_b_q.weight)
        save_expert(net, tmp_path / f"{level}.pt", level)
        files += [str(tmp_path / f"{level}.pt"), str(tmp_path / f"{level}_random.pt")]
    monkeypatch.setattr(sys, "argv", ["random_experts.py", str(tmp_path / "base.pt"), "tiny", "3", *files])
    random_experts.main()
    states = [torch.load(file, weights_only=True)["state_dict"] for file in files[1::2]]
    assert not torch.equal(states[0]["blocks.0.linear_b_q.weight"], states[1]["blocks.0.linear_b_q.weight"])
    assert not states[0]["blocks.0.linear_b_v.weight"].any()  # the trained one said nothing there
    net = build_segmenter("tiny", 112, experts=LEVELS, fusion="attention")
    load_sam(net, tmp_path / "base.pt")
    load_expert(net, files[1], "image")
    found = net.image_encoder.blocks[0].attn.experts["image"].linear_b_q.weight
    assert torch.equal(found, states[0]["blocks.0.linear_b_q.weight"])
