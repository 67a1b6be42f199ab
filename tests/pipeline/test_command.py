"""The command line `samora`."""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from samora_monai.bundles import bundle_path
from samora_monai.errors import MissingFileError
from samora_monai.pipeline import command, folders
from samora_monai.pipeline.command import main, model_file
from samora_monai.pipeline.run import Stopped, alone_in
from samora_monai.pipeline.stages import Stage
from tests.tiny import refused

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def arguments(phantoms: Path, base: Path, tmp_path: Path) -> list[str]:
    """The command line of a training of a few steps."""
    network = ["--encoder", "sam2_mini", "--sam_checkpoint", str(base)]
    return [str(phantoms), "--output", str(tmp_path / "run"), *network, "--steps", "10", "--device", "cpu"]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `run_stages` gets, in place of a run."""
    calls: list[dict[str, Any]] = []

    def record(stages: list[Stage], run: Path, jobs: int, threads: int) -> None:
        calls.append({"stages": {stage.name: stage for stage in stages}, "run": run, "jobs": jobs, "threads": threads})

    monkeypatch.setattr(command, "run_stages", record)
    monkeypatch.setattr(command, "outcome", lambda stages, run: "outcome")
    return calls


def code_of(*words: str) -> Any:
    """The exit code or message of a command."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    return stop.value.code


def failed(*words: str) -> str:
    """The one line with which a command fails."""
    message = code_of(*words)
    assert isinstance(message, str) and message.startswith("error: ") and "\n" not in message
    return message


def test_a_plan_is_made_once_and_kept(
    arguments: list[str], runs: list[dict[str, Any]], tmp_path: Path, capsys: Capture
):
    assert code_of("train", *arguments, "--jobs", "1") is None
    plan = tmp_path / "run" / "plan.yaml"
    (made,) = runs
    assert made["run"] == tmp_path / "run" and made["jobs"] == 1 and "samed" not in made["stages"]
    edited = yaml.safe_load(plan.read_text())
    edited["stages"]["fine_tuning"]["learning_rate"] = 0.125
    plan.write_text(yaml.safe_dump(edited))
    capsys.readouterr()
    assert code_of(*arguments, "--jobs", "2", "--compare") is None  # `train` may be left out
    assert capsys.readouterr().out == f"plan: {plan}, as it is\noutcome\n"
    assert runs[1]["jobs"] == 2 and runs[1]["stages"]["samed"].settings["learning_rate"] == 0.125
    assert code_of("plan", *arguments) is None  # makes it again
    assert yaml.safe_load(plan.read_text())["stages"]["fine_tuning"]["learning_rate"] != 0.125


def test_a_dry_run_prints_plan_and_commands_and_trains_nothing(arguments: list[str], tmp_path: Path, capsys: Capture):
    assert code_of(*arguments, "--dry_run", "--compare") is None
    text = capsys.readouterr().out
    assert "learning_rate: 0.001" in text and text.count(" -m monai.bundle run ") == 10
    copy = f"{tmp_path}/run/bundles/pixel_expert"
    assert f"mkdir -p {copy}; cp -r {bundle_path('samora_pixel_expert')}/. {copy}\n" in text
    assert not (tmp_path / "run" / "bundles").exists()


def test_a_folder_belongs_to_the_scans_of_its_plan(arguments: list[str], runs: list[Any], phantoms: Path):
    assert code_of(*arguments) is None
    other = [str(phantoms / "imagesTr"), *arguments[1:]]
    assert "was made for other scans than" in failed(*other)
    assert len(runs) == 1


def test_the_folder_is_walked_once(
    arguments: list[str], runs: list[Any], phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(phantoms, tmp_path / "scans")
    (tmp_path / "scans" / "dataset.json").unlink()
    walks: list[Path] = []
    walk = folders.iterate_scans

    def counted(root: Path, *more: Any) -> Any:
        walks.append(root)
        return walk(root, *more)

    monkeypatch.setattr(folders, "iterate_scans", counted)
    for count in (1, 2):  # with the plan and after it
        assert code_of("train", str(tmp_path / "scans"), *arguments[1:]) is None
        assert walks == count * [tmp_path / "scans"]


def test_new_scans_need_a_new_plan_and_the_old_one_is_kept(
    arguments: list[str], runs: list[Any], phantoms: Path, tmp_path
):
    scans = tmp_path / "scans"
    shutil.copytree(phantoms, scans)
    (scans / "dataset.json").unlink()
    own = [str(scans), *arguments[1:]]
    assert code_of(*own) is None
    first = min((scans / "imagesTr").iterdir())
    shutil.copyfile(first, scans / "imagesUnlabeled" / f"new_{first.name}")
    assert "was made for other scans than" in failed(*own)
    edited = (tmp_path / "run" / "plan.yaml").read_text() + "# edited\n"
    (tmp_path / "run" / "plan.yaml").write_text(edited)
    assert code_of("plan", *own) is None and code_of(*own) is None
    assert (tmp_path / "run" / "plan.yaml.old").read_text() == edited


def test_an_option_that_the_plan_contradicts_is_refused(arguments: list[str], runs: list[Any]):
    assert code_of(*arguments) is None
    assert code_of(*arguments) is None  # the same options again
    assert "--decoder hierarchical has no effect" in failed(*arguments, "--decoder", "hierarchical")
    assert "--seed 3 has no effect" in failed(*arguments, "--seed", "3")
    assert code_of(*arguments, "--jobs", "1") is None


def test_scans_inside_the_folders_of_a_run_are_refused(phantoms: Path, tmp_path: Path):
    shutil.copytree(phantoms, tmp_path / "own" / "data")
    before = (tmp_path / "own" / "data" / "dataset.json").read_bytes()
    assert "holds the scans" in failed("plan", str(tmp_path / "own" / "data"), "--output", str(tmp_path / "own"))
    assert (tmp_path / "own" / "data" / "dataset.json").read_bytes() == before


def test_mistakes_are_one_line(arguments: list[str], phantoms: Path, tmp_path: Path):
    assert "give another folder with --output" in failed(str(phantoms), "--output", str(phantoms))
    assert "does not exist" in failed(str(tmp_path / "none"), "--output", str(tmp_path / "run"))
    (tmp_path / "file").touch()
    message = failed(str(phantoms), "--output", str(tmp_path / "file" / "run"))
    assert "cannot write" in message and message.endswith("--output")
    (tmp_path / "run").mkdir(exist_ok=True)
    with alone_in(tmp_path / "run"):
        assert "another pipeline works in" in failed(*arguments)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device", "/run/a"), "error: No space left on device ('/run/a'); correct that"),
        (Stopped(), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_end_has_its_code(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture, error: BaseException, expected: str | int
):
    def stop(*_: Any) -> None:
        raise error

    monkeypatch.setattr(command, "run_stages", stop)
    code = code_of(*arguments)
    if isinstance(expected, int):
        assert code == expected and "the same command goes on from there" in capsys.readouterr().err
    else:
        assert code.startswith(expected) and code.endswith("what is finished is kept")


def test_scans_that_a_pipeline_has_made_are_not_looked_at(arguments: list[str], phantoms: Path, tmp_path: Path):
    """The folder of the pipeline may be in that of the scans."""
    scans = Path(shutil.copytree(phantoms, tmp_path / "scans"))
    (scans / "dataset.json").unlink()
    run = scans / "RUN"
    for name in ("imagesTr", "labelsTr"):
        shutil.copytree(scans / name, run / "predictions" / name)
    assert code_of("plan", str(scans), "--output", str(run), *arguments[3:]) is None
    assert "RUN" not in (run / "data" / "dataset.json").read_text().split('"training"')[1]


def test_the_model_of_a_pipeline_of_a_bundle_or_alone(tmp_path: Path):
    for folder in ("run/samora/models", "bundle/models", "alone"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "model.pt").touch()
    assert model_file(tmp_path / "run") == tmp_path / "run/samora/models/model.pt"
    assert model_file(tmp_path / "bundle") == tmp_path / "bundle/models/model.pt"
    assert model_file(tmp_path / "alone/model.pt") == tmp_path / "alone/model.pt"
    with refused("no trained model in", "samora train", error=MissingFileError):
        model_file(tmp_path)


@pytest.mark.parametrize("place", ["bundle", "alone"])
def test_using_a_model_is_one_command_of_its_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, place: str
):
    called: list[list[str]] = []
    trusted: list[bool] = []
    monkeypatch.setattr(
        command, "run_visibly", lambda words, own: called.append(list(words)) or trusted.append(own) or 7
    )
    model = tmp_path / place / "models" / "model.pt"
    model.parent.mkdir(parents=True)
    model.touch()
    bundle = bundle_path("samora_segmentation")
    if place == "bundle":
        shutil.copytree(bundle / "configs", tmp_path / place / "configs")
        bundle = tmp_path / place
    assert code_of("predict", str(model), "scans", str(tmp_path / "out"), "--device", "cpu") == 7
    assert called[0][1:] == [
        *("-m", "monai.bundle", "run", "inference", "--config_file", f"{bundle}/configs/inference.json"),
        *("--bundle_root", str(bundle), "--dataset_dir", f"{Path.cwd()}/scans", "--output_dir", f"{tmp_path}/out"),
        *("--resume", "True", "--dataset::data::scans"),
        "$samora_monai.data.find_images(@dataset_dir, @output_dir)",
        *("--checkpoint", str(model), "--device", "cpu"),
    ]
    assert code_of("evaluate", str(tmp_path / place), "scans", "--output", str(tmp_path / "out")) == 7
    assert called[1][4] == "evaluating" and called[1][-2:] == ["--checkpoint", str(model)]
    assert capsys.readouterr().out.count("$ ") == 2 and trusted == [True, True]
    for words in (["predict", str(model), "scans", "out"], ["evaluate", str(model), "scans", "--output", "out"]):
        assert code_of(*words, "--tta") == 7 and called.pop()[-2:] == ["--tta", "True"] and trusted.pop()
    if place == "bundle":  # one of another person
        (bundle / "configs" / "inference.json").write_text("{}")
        assert code_of("predict", str(model), "scans", "out") == 7 and trusted[2:] == [False]


def test_the_module_and_the_script_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["pipeline", "predict", str(tmp_path), "scans", "out"])
    with pytest.raises(SystemExit, match="error: no trained model in"):
        runpy.run_module("samora_monai.pipeline", run_name="__main__")
    text = (Path(__file__).parents[2] / "setup.cfg").read_text()
    assert "samora = samora_monai.pipeline.command:main\n" in text
