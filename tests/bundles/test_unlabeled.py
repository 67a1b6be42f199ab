"""A fine-tuning that learns from unlabelled scans too, and one that only averages its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow

from samora_monai.federated import AdapterAlgo
from tests.bundles.command_line import BUNDLE, FAST, Bundle, CommandLine
from tests.bundles.test_two_processes import Launch, launch  # noqa: F401  # a fixture
from tests.nested import assert_equal
from tests.tiny import TINY, refused

Build = Callable[..., ConfigWorkflow]
LEARN: dict[str, Any] = FAST | {"encoder": TINY, "image_size": 32, "learning_rate": 1e-3, "num_labeled": 1}


def run(workflow: ConfigWorkflow, epochs: int | None = None) -> None:
    """Initialise and run a workflow, up to the end of one of its epochs."""
    workflow.initialize()
    if epochs is not None:
        trainer = workflow.parser.get_parsed_content("train::trainer")
        trainer.add_event_handler(Events.EPOCH_COMPLETED(once=epochs), trainer.terminate)
    workflow.run()
    workflow.finalize()


def saved(bundle: Bundle) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model and the last checkpoint."""
    model, last = (torch.load(bundle.root / file, weights_only=True) for file in ("models/model.pt", "eval/last.pt"))
    return model, last


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"decoder": "sam"}, marks=pytest.mark.slow),
        {"decoder": "hierarchical", "class_balanced_attention": True, "trainable": "adapters"},
        pytest.param({"encoder": "sam2_mini", "image_size": 64}, marks=pytest.mark.slow),
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_resumed_training_equals_an_undisturbed_one(
    bundle: Bundle, phantoms: Path, in_process: Build, command_line: CommandLine, tmp_path: Path, settings: dict
):
    """With unlabelled scans, whose mixing is random; the saved model is the average, not the last weights."""
    settings = LEARN | settings | {"dataset_dir": str(phantoms), "unlabeled": str(phantoms), "epochs": 2}
    undisturbed = Bundle(tmp_path / "undisturbed", command_line)
    run(in_process(undisturbed, "training", **settings))
    run(in_process(bundle, "training", **settings), epochs=1)
    run(in_process(bundle, "training", **settings, resume="true"))
    (model, last), (expected_model, expected_last) = saved(bundle), saved(undisturbed)
    assert_equal(last, expected_last, "last.pt")
    assert_equal(model, expected_model, "model.pt")
    assert last["average"]["updates"] == last["trainer"]["iteration"] == 6  # 10 slices in fours
    trained = last["model"]["state_dict"]
    different = [name for name, value in last["average"]["average"].items() if not torch.equal(value, trained[name])]
    assert len(different) > 0.9 * len(last["average"]["average"])


def test_average_alone_is_what_is_validated_and_saved(
    bundle: Bundle, phantoms: Path, in_process: Build, command_line: CommandLine, tmp_path: Path
):
    """The student is that of a training without an average, bit by bit."""
    settings = LEARN | {"dataset_dir": str(phantoms), "epochs": 1}
    plain = Bundle(tmp_path / "plain", command_line)
    run(in_process(plain, "training", **settings))
    workflow = in_process(bundle, "training", **settings, ema=0.9)
    run(workflow)
    (model, last), (plain_model, plain_last) = saved(bundle), saved(plain)
    assert_equal(last["model"], plain_last["model"], "the student")
    assert "average" not in plain_last
    average = last["average"]["average"]
    assert_equal({name: model[name] for name in average}, average, "model.pt")
    assert not torch.equal(model["mask_decoder.mask_tokens.weight"], plain_model["mask_decoder.mask_tokens.weight"])
    evaluator = workflow.parser.get_parsed_content("validate::evaluator")
    assert evaluator.network is workflow.parser.get_parsed_content("average").module


def test_federation_refuses_an_average(tmp_path: Path):
    for name, value in (("ema", 0.99), ("unlabeled", str(tmp_path))):
        with refused(f"{name} was given", "leave it out"):
            AdapterAlgo(str(BUNDLE), rounds=1, dataset_dir=str(tmp_path), **{name: value}).initialize()


@pytest.mark.slow
def test_two_processes_have_one_teacher(launch: Launch, bundle: Bundle, phantoms: Path):  # noqa: F811
    settings = LEARN | {"dataset_dir": phantoms, "unlabeled": phantoms}
    finished = launch(bundle, "training", "multi_gpu_train.yaml", **settings)
    assert [f.code for f in finished] == [0] * len(finished), finished
    assert "".join(f.out for f in finished).count("unlabelled  1 scans, 6 slices") == 1
    _, last = saved(bundle)
    assert last["average"]["updates"] == last["trainer"]["iteration"] == 4  # 10 slices in fours, by two
