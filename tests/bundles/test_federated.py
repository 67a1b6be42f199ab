"""Two sites of a federation, through the rounds of docs/federated.md."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.fl.utils.constants import ExtraItems, FlStatistics, ModelType
from monai.fl.utils.exchange_object import ExchangeObject
from monai.utils import set_determinism
from torch import Tensor

from samora_monai.federated import FROZEN, AdapterAlgo
from samora_monai.networks import LEVELS
from samora_monai.schedules import warmup_poly
from samora_monai.synthetic.phantoms import CLASS_NAMES
from samora_monai.workflow.error_hook import user_message
from tests.bundles.command_line import BUNDLE, Bundle, CommandLine
from tests.bundles.weights import write_expert, write_sam
from tests.test_federated import STAYS
from tests.tiny import refused, untouched

DOCS = BUNDLE / "docs" / "federated.md"
ROUNDS = 3
TRAINED = 2  # by both sites; one of them is stopped then, and trains the last round after a restart
WARMUP = 1
RATE = 1e-5  # it hardly learns, so that its predictions hold every class


def tensors(net: torch.nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


@dataclass
class Site:
    """A client, and what its engine and its filters saw."""

    bundle: Bundle
    algo: AdapterAlgo
    data: dict[str, Any]
    before: dict[str, Tensor] = field(default_factory=dict)
    starts: list[dict[str, Tensor]] = field(default_factory=list)  # weights before the first step of each round
    rates: list[float] = field(default_factory=list)  # learning rate of each step
    messages: list[ExchangeObject] = field(default_factory=list)
    validations: list[int] = field(default_factory=list)  # epoch of each

    def watch(self) -> None:
        trainer, net = self.algo.trainer, self.algo.train_workflow.network_def
        self.before = tensors(net)
        trainer.add_event_handler(Events.STARTED, lambda engine: self.starts.append(tensors(net)))
        trainer.add_event_handler(
            Events.ITERATION_STARTED, lambda engine: self.rates.append(engine.optimizer.param_groups[0]["lr"])
        )
        self.algo.evaluator.add_event_handler(
            Events.COMPLETED, lambda engine: self.validations.append(engine.state.epoch)
        )
        self.algo.post_weight_filters.append(self._sent)

    def _sent(self, data: ExchangeObject, extra: dict) -> ExchangeObject:
        self.messages.append(data)
        return data


@dataclass
class Federation:
    sites: list[Site]
    model: ExchangeObject
    dice: list[float]


@pytest.fixture(scope="module", params=["tiny", pytest.param("sam2_mini", marks=pytest.mark.slow)])
def federation(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, command_line: CommandLine, phantoms: Path
) -> Iterator[Federation]:
    """SAMora at two sites with a scan each, of different length, through the rounds of docs/federated.md."""
    hooks = sys.excepthook, logging.getLogRecordFactory(), logging.getLogger("monai.bundle.scripts").level
    folder = tmp_path_factory.mktemp("federation")
    encoder = request.param
    sam = write_sam(folder / "sam.pth", encoder=encoder, num_classes=len(CLASS_NAMES))
    experts = {level: write_expert(folder / f"{level}.pt", sam, level, encoder=encoder) for level in LEVELS}
    listed = json.loads((phantoms / "dataset.json").read_text())
    sites = []
    for i, name in enumerate("ab"):
        datalist = folder / f"{name}.json"
        lists = {key: [listed[key][i]] for key in ("training", "validation")}
        datalist.write_text(json.dumps(listed | lists))
        data = {"dataset_dir": str(phantoms), "datalist": str(datalist)}
        bundle = Bundle(folder / name, command_line)
        algo = AdapterAlgo(
            name,
            rounds=ROUNDS,
            local_epochs=1,
            encoder=encoder,
            image_size=64,
            sam_checkpoint=str(sam),
            experts=list(LEVELS),
            fusion="attention",
            trainable="adapters",
            **{f"{level}_expert": str(path) for level, path in experts.items()},
            batch_size=2,
            slice_fraction=(1.0, 0.5)[i],
            learning_rate=RATE,
            warmup=WARMUP,
            device="cpu",
            **data,
        )
        algo.initialize({ExtraItems.CLIENT_NAME: name, ExtraItems.APP_ROOT: str(folder)})
        sites.append(Site(bundle, algo, data))
        sites[-1].watch()

    code = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[1]
    values: dict[str, Any] = {"sites": [site.algo for site in sites], "rounds": TRAINED}
    exec(code, values)
    yield Federation(sites, values["model"], values["dice"])
    sys.excepthook = hooks[0]
    logging.setLogRecordFactory(hooks[1])
    logging.getLogger("monai.bundle.scripts").setLevel(hooks[2])
    set_determinism(seed=None)


def test_sites_start_each_round_from_one_model(federation: Federation):
    a, b = federation.sites
    assert [len(site.starts) for site in federation.sites] == [TRAINED, TRAINED]
    for ours, theirs in zip(a.starts, b.starts, strict=True):
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    (key,) = (key for key in a.starts[0] if key.endswith("mask_decoder.mask_tokens.weight"))
    assert not torch.equal(a.starts[0][key], a.starts[1][key])
    assert not torch.equal(a.messages[-1].weights[key], b.messages[-1].weights[key])


def test_model_is_the_mean_by_steps(federation: Federation):
    a, b = federation.sites
    assert len(a.messages) == TRAINED + 1 and len(b.messages) == TRAINED  # one handed out the start
    steps = [site.messages[-1].statistics[FlStatistics.NUM_EXECUTED_ITERATIONS] for site in (a, b)]
    assert steps[0] > steps[1] > 0
    assert [TRAINED * n for n in steps] == [len(a.rates), len(b.rates)]
    share = steps[0] / sum(steps)
    for name, value in federation.model.weights.items():
        ours, theirs = (site.messages[-1].weights[name].numpy().astype(np.float64) for site in (a, b))
        np.testing.assert_allclose(value.numpy(), share * ours + (1 - share) * theirs, rtol=1e-6, atol=1e-9)


def rates(start: int, end: int, total: int) -> list[float]:
    return [RATE * warmup_poly(step, warmup=WARMUP, max_iterations=total, exponent=0.9) for step in range(start, end)]


def test_rate_falls_over_all_rounds(federation: Federation):
    for site in federation.sites:
        count = len(site.rates)
        assert site.rates == pytest.approx(rates(0, count, count // TRAINED * ROUNDS), rel=1e-9)
        assert len(set(site.rates)) > 1


def test_frozen_weights_stay_and_are_never_sent(federation: Federation):
    for site in federation.sites:
        after = site.algo.train_workflow.network_def.state_dict()
        stays = [key for key in after if STAYS.match(key)]
        assert sum(".experts." in key for key in stays) == 3 * 4 * len(
            site.algo.trainer.network.image_encoder.encoder_blocks()
        )
        assert all(torch.equal(site.before[key], after[key]) for key in stays)
        moved = [key for key in after if not torch.equal(site.before[key], after[key])]
        assert len(moved) > 0.9 * (len(after) - len(stays))
        for message in site.messages:
            assert set(message.weights) == {FROZEN} | (set(after) - set(stays))
            assert message.optim is None and message.metrics is None
            assert all(isinstance(value, int) for value in message.statistics.values())


def test_best_model_leaves_without_its_base(federation: Federation):
    """The other way in which `MonaiAlgo` sends weights: from the file, which holds the whole network."""
    site = federation.sites[0]
    message = site.algo.get_weights({ExtraItems.MODEL_TYPE: ModelType.BEST_MODEL})
    assert set(message.weights) == set(federation.model.weights)
    assert torch.equal(message.weights[FROZEN], federation.model.weights[FROZEN].round())


def test_best_exchanged_model_is_served(federation: Federation, in_process, tmp_path: Path):
    """What `evaluate` reported for it is the Dice of the label that inference writes."""
    site, state = federation.sites[1], federation.sites[1].algo.evaluator.state
    saved = torch.load(site.bundle.model, weights_only=True)
    assert site.validations == [2, 3]  # never of what a site has trained alone
    exchanged = {2: site.starts[1], 3: federation.model.weights}[state.best_metric_epoch]  # after round 1 and 2
    assert all(torch.equal(value, exchanged[name]) for name, value in saved.items() if not STAYS.match(name))

    case = json.loads(Path(site.data["datalist"]).read_text())["validation"][0]
    scan, label = (Path(site.data["dataset_dir"]) / case[part] for part in ("image", "label"))
    workflow = in_process(site.bundle, "inference", dataset_dir=str(scan), output_dir=str(tmp_path), device="cpu")
    workflow.initialize()
    assert all(torch.equal(value, saved[key]) for key, value in workflow.network_def.state_dict().items())
    workflow.run()
    pred = np.asanyarray(nib.load(next(tmp_path.glob("*_seg.nii.gz"))).dataobj)
    true = np.asanyarray(nib.load(label).dataobj)
    organs = range(1, len(CLASS_NAMES))
    dice = [2 * ((pred == c) & (true == c)).sum() / ((pred == c).sum() + (true == c).sum()) for c in organs]
    assert np.mean(dice) == pytest.approx(state.best_metric, abs=1e-6)
    assert state.best_metric > 0.01  # the comparison is not of zeros


def test_stopped_site_goes_on(federation: Federation):
    """With its optimiser and its place on the schedule, up to the last round and no further."""
    site = federation.sites[1]
    count = len(site.rates)
    again = Site(site.bundle, AdapterAlgo(str(site.bundle.root), ROUNDS, **site.algo.settings, resume=True), site.data)
    again.algo.initialize()
    again.watch()
    assert again.algo.trainer.state.iteration == count
    moments = [algo.trainer.optimizer.state_dict()["state"][0]["exp_avg"] for algo in (site.algo, again.algo)]
    assert torch.equal(*moments) and moments[0].abs().max() > 0

    again.algo.train(federation.model)
    total = count // TRAINED * ROUNDS
    assert again.rates == pytest.approx(rates(count, total, total), rel=1e-9)
    assert again.algo.get_weights().statistics[FlStatistics.NUM_EXECUTED_ITERATIONS] == total - count
    with untouched(again.algo.train_workflow.network_def), refused(f"all its {ROUNDS} rounds", "resume"):
        again.algo.train(federation.model)


def test_best_dice_outlives_a_stop_after_the_evaluation(federation: Federation):
    """So that no worse model takes the place of `model.pt`."""
    site = federation.sites[0]
    algo = AdapterAlgo(str(site.bundle.root), ROUNDS, **site.algo.settings, resume=True)
    algo.initialize()
    algo.evaluator.state.best_metric, algo.evaluator.state.best_metric_epoch = -1.0, -1  # as if this were the best one
    algo.evaluate(federation.model)
    last = torch.load(site.bundle.root / "eval" / "last.pt", weights_only=True)
    assert last["best"] == {"best_metric": pytest.approx(federation.dice[0]), "best_metric_epoch": TRAINED + 1}


def test_site_stopped_within_a_round_trains_its_rest(federation: Federation):
    """Two of three epochs are done; the sites and the learning rate come to the end together."""
    site = federation.sites[0]
    settings = site.algo.settings | {"resume": True}
    algo = AdapterAlgo(str(site.bundle.root), rounds=2, local_epochs=3, **settings)
    algo.initialize()
    for epoch in (3, 6):
        algo.train(federation.model)
        assert algo.trainer.state.epoch == epoch


def test_users_mistakes(federation: Federation, tmp_path: Path):
    site = federation.sites[0]
    with refused("unknown setting 'epoch'", "train.yaml"):
        AdapterAlgo(str(site.bundle.root), rounds=1, epoch=1).initialize()
    with pytest.raises(RuntimeError) as info:
        AdapterAlgo(str(site.bundle.root), rounds=1, dataset_dir=str(tmp_path / "none")).initialize()
    message = user_message(info.value)
    assert message is not None and "none' does not exist" in message and "\n" not in message
