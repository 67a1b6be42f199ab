"""Misspelt settings on the command line."""

from __future__ import annotations

import sys

import pytest

from samora_monai.errors import InputError
from samora_monai.settings import flag
from samora_monai.workflow.overrides import check_overrides, parse_flags

CONFIG = """
epochs: 100
batch_size: 8
intensity_range: null
train:
  dataloader: {_target_: DataLoader, batch_size: '@batch_size'}
  handlers: [{_target_: StatsHandler}, {_target_: Other}]
initialize: [$1]
"""


@pytest.fixture()
def check(tmp_path, monkeypatch):
    """Run the check as in `python -m monai.bundle run training --config_file train.yaml ARGUMENTS`."""
    config = tmp_path / "train.yaml"
    config.write_text(CONFIG)

    def run(*arguments, program="/x/monai/bundle/__main__.py", command="run"):
        monkeypatch.setattr(sys, "argv", [program, command, "training", "--config_file", str(config), *arguments])
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
            ["--train::dataloder::num_workers", "2"],
            "'train::dataloder::num_workers' .* did you mean 'train::dataloader",
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


def test_flags_as_fire_reads_them():
    arguments = ["training", "--a", "1", "--b=x", "--c", "-3", "--noamp", "--d", "--e", "[1, 'y']"]
    assert parse_flags(arguments) == {"a": 1, "b": "x", "c": -3, "amp": False, "d": True, "e": [1, "y"]}


@pytest.mark.parametrize(("value", "expected"), [(True, True), (False, False), ("true", True), ("False", False)])
def test_flag(value, expected):
    assert flag(value) is expected


def test_flag_refuses_anything_else():
    with pytest.raises(InputError, match="expected true or false for a switch, got 'maybe'"):
        flag("maybe")


@pytest.mark.parametrize("arguments", [["--epochs", "null"], ["--train::dataloader::shuffle", "false"]])
def test_refuses_yaml_literals_that_fire_takes_for_text(check, arguments):
    with pytest.raises(InputError, match="would be read as the text"):
        check(*arguments)
