"""Misspelt settings on the command line."""

from __future__ import annotations

import json
import sys

import pytest

from samora_monai.errors import InputError
from samora_monai.workflow.overrides import check_overrides, given_settings

CONFIG = """
bundle_root: .
epochs: 100
batch_size: 8
intensity_range: null
seed: 1
spare: 1
size: 1
workers: 0
part: [1, '@::1', '@::#size']
copied: '%part'
train:
  dataset: {_target_: CacheDataset, data: [], num_workers: '@workers'}
  loss: {_target_: DiceLoss}
  later: {_target_: $@size}
  dataloader: {_target_: DataLoader, dataset: '@train::dataset', batch_size: '@batch_size'}
  handlers: [{_target_: StatsHandler}, {_target_: Other}]
  trainer: {max_epochs: '@epochs', handlers: '@train::handlers', range: '@intensity_range'}
initialize: [$str(@seed)]
training: ['@train::trainer', '@train::dataloader', '@copied', '@run']
run: [$1]
cache: ['@train::dataset']
"""


@pytest.fixture()
def check(tmp_path, monkeypatch):
    """Run the check as in `python -m monai.bundle run training --config_file train.yaml ARGUMENTS`."""
    config = tmp_path / "train.yaml"
    config.write_text(CONFIG)

    def run(*arguments, program="/x/monai/bundle/__main__.py", command="run", workflow="training"):
        monkeypatch.setattr(sys, "argv", [program, command, workflow, "--config_file", str(config), *arguments])
        check_overrides()

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--epochs", "1"],
        ["--epochs=1", "--batch-size", "2"],  # fire reads - as _
        ["--epochs", "$2 * 3", "--batch_size", "@epochs"],
        ["--intensity_range", "[0, 1]"],  # present, though null
        ["--train::dataloader::pin_memory", "True"],  # a component's argument that the config leaves out
        ["--train#handlers#1#_disabled_", "True"],
        ["--run_id", "training", "--meta_file", "m.json", "--logging_file", "l.conf", "--init_id", "x"],
        ["--workflow_type", "train"],
        ["--_meta_::version", "2"],
        ["--tracking", "mlflow", "--experiment_name", "a", "--tracking_uri", "b"],
        ["--", "--trace"],
    ],
)
def test_accepts(check, arguments, monkeypatch):
    monkeypatch.setattr("samora_monai.workflow.overrides.require_mlflow", lambda: None)  # settings, not packages
    check(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch", "1"], "unknown setting 'epoch' in .*train.yaml; did you mean 'epochs'"),
        (["--batchsize=4"], "'batchsize' .* did you mean 'batch_size'"),
        (
            ["--train::dataloder::batch_size", "2"],
            "'train::dataloder::batch_size' .* did you mean 'train::dataloader",
        ),
        (["--train::handlers::-1", "null"], "unknown setting 'train::handlers::_1'"),  # as fire passes it on
        (["--train::handlers::2", "null"], "unknown setting 'train::handlers::2'"),
        (["--epochs::x", "1"], "'epochs::x' does not exist .* 'epochs' is the value 100"),
        (["--experiment_name", "a"], "unknown setting 'experiment_name'"),  # without --tracking
        (["--zzz"], "unknown setting 'zzz' .* see the top of that file"),
        (["--epochs", "many"], "'--epochs' must be a number, got 'many'; the config has 100"),
    ],
)
def test_refuses(check, arguments, message):
    with pytest.raises(InputError, match=message):
        check(*arguments)


def test_reads_the_args_file(check, tmp_path):
    args = tmp_path / "args.yaml"
    args.write_text("epochs: 2\n'train::dataloader::batch_size': 4\n")
    check("--args_file", str(args))
    args.write_text("epoch: 2\n")
    with pytest.raises(InputError, match="did you mean 'epochs'"):
        check("--args_file", str(args))


def test_joins_several_config_files(check, tmp_path):
    more = tmp_path / "multi_gpu.yaml"
    more.write_text("world: 2\n'+train::handlers': [{_target_: Third}]\n")
    check("--config_file", str([str(tmp_path / "train.yaml"), str(more)]), "--world", "3", "--train::handlers::2", "0")


def test_is_silent_elsewhere(check):
    check("--epoch", "1", program="/usr/bin/pytest")
    check("--epoch", "1", command="verify_metadata")


def test_settings_are_read_as_fire_reads_them():
    arguments = ["training", "--a", "1", "--b=x", "--c", "-3", "--noamp", "--d", "--e", "[1, 'y']", "--a-b", "2"]
    want = {"run_id": "training", "a": 1, "b": "x", "c": -3, "amp": False, "d": True, "e": [1, "y"], "a_b": 2}
    assert given_settings(arguments) == want


def test_reading_settings_prints_and_runs_nothing(capfd):
    assert given_settings(["training", "setup", "-c", "x.yaml", "--", "--trace"]) == {
        "run_id": "training",
        "init_id": "setup",
    } | {"c": "x.yaml"}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("arguments", [["--epochs", "null"], ["--train::dataloader::shuffle", "false"]])
def test_refuses_yaml_literals_that_fire_takes_for_text(check, arguments):
    with pytest.raises(InputError, match="would be read as the text"):
        check(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train::dataset::cache_rat", "1"], "CacheDataset has no argument 'cache_rat'; did you mean 'cache_rate'"),
        (
            ["--train::loss::zzz", "x"],
            "'train::loss::zzz': .*; it takes include_background, to_one",
        ),
        (["--train::dataset::_disable_", "True"], "'_disable_'; did you mean '_disabled_'"),
        (["--train::loss::weights", "1"], "DiceLoss has no argument 'weights'; did you mean 'weight'"),
    ],
)
def test_refuses_an_argument_that_the_component_does_not_have(check, arguments, message):
    with pytest.raises(InputError, match=message):
        check(*arguments)


def test_accepts_an_argument_that_the_component_has(check):
    check("--train::dataset::cache_rate", "0.5", "--train::dataset::_disabled_", "True", "--train::loss::batch", "True")
    check("--train::later::anything", "1")  # which component it is, only the run will show


def effects(check, caplog, *arguments, workflow="training"):
    caplog.clear()
    check(*arguments, workflow=workflow)
    return [record.getMessage() for record in caplog.records if record.name == "samora_monai.workflow.overrides"]


def test_warns_of_a_setting_that_the_workflow_does_not_use(check, caplog, monkeypatch):
    nothing = ["--epochs has no effect in 'cache'"]
    assert effects(check, caplog, "--epochs", "1", "--seed", "2", workflow="cache") == nothing
    assert effects(check, caplog, "--bundle_root", ".", workflow="cache") == []
    assert effects(check, caplog, "--epochs", "1", "--seed", "2", "--train::dataset::num_workers", "2") == []
    monkeypatch.setenv("RANK", "1")  # one process is enough to warn
    assert effects(check, caplog, "--epochs", "1", workflow="cache") == []


def test_effect_of_nested_settings_and_of_macros(check, caplog):
    assert effects(check, caplog, "--train", "{'trainer': 1}") == []  # it replaces what is referred to
    assert effects(check, caplog, "--part", "[3]") == []  # through a macro
    assert effects(check, caplog, "--size", "2") == []  # through a macro and a relative reference, too
    assert effects(check, caplog, "--train::loss::batch", "True") == [
        "--train::loss::batch has no effect in 'training'"
    ]
    # an override can refer to another, and can end a reference
    assert effects(check, caplog, "--epochs", "@spare", "--spare", "2") == []
    assert effects(check, caplog, "--spare", "2") == ["--spare has no effect in 'training'"]
    assert effects(check, caplog, "--train::dataset::num_workers", "2", "--workers", "3") == [
        "--workers has no effect in 'training'"
    ]


MODEL = {"_target_": "samora_monai.checkpoints.read_model_settings", "checkpoint": "model.pt"}


def test_a_field_of_the_trained_model_is_overridden_below_model(check, caplog, tmp_path):
    """Where the config reads the model from its file, as in inference and evaluation."""
    overlay = tmp_path / "inference.json"
    overlay.write_text(json.dumps({"model": MODEL, "run": ["@model"]}))
    with pytest.raises(InputError) as error:
        check("--config_file", str(overlay), "--window", "[-160, 240]", workflow="run")
    remedy = "; it belongs to the trained model, override it with --model::window VALUE"
    assert str(error.value) == f"unknown setting 'window' in {overlay}{remedy}"
    overlay.write_text(json.dumps({"model": MODEL, "run": ["@model"], "window": [-125, 275], "epochs": 1}))
    given = ("--config_file", str(overlay), "--window", "[-160, 240]", "--epochs", "2")
    assert effects(check, caplog, *given, workflow="run") == [
        f"--window has no effect in 'run'{remedy}",
        "--epochs has no effect in 'run'",
    ]
    assert effects(check, caplog, "--config_file", str(overlay), "--model::window", "[-160, 240]", workflow="run") == []


def test_a_field_of_the_model_is_an_unknown_setting_where_no_model_is_read(check):
    with pytest.raises(InputError, match=r"unknown setting 'window' in .*; see the top of that file"):
        check("--window", "[-160, 240]")
