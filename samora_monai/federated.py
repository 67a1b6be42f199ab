"""Federated fine-tuning: sites train one adapter on scans that never leave them, and exchange only the adapter.

A site is MONAI's `MonaiAlgo` on the segmentation bundle; the adapters of the sites are averaged by FedAvg
(https://arxiv.org/abs/1602.05629). Differs from `MonaiAlgo` in: only the parameters that train are sent and accepted;
the bundle is built with its folder and the epochs of all rounds, so that the learning rate falls over the whole
federation and `resume` works; it is built once instead of four times, and one network is trained and evaluated.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, FlStatistics, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from monai.fl.utils.filters import Filter
from torch import Tensor

from samora_monai.checkpoints.files import sha256_of
from samora_monai.checkpoints.sam import base_keys
from samora_monai.errors import InputError
from samora_monai.networks import Segmenter

FROZEN = "frozen_sha256"  # sent as one of the weights, so that any averaging server returns it


def adapter_names(net: Segmenter) -> list[str]:
    """Names of the parameters that are exchanged: those that train. An `InputError` if the base encoder trains."""
    names = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    if base := [name for name in base_keys(net) if name in set(names) and name.startswith("image_encoder.")]:
        raise InputError(
            f"{len(base)} parameters of the base encoder train ({base[0]}, ...), but a federation exchanges adapters; "
            "choose 'adapters', 'adapters+experts' or 'decoder' as trainable"
        )
    return names


def fingerprint(state: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """SHA-256 of `state` without `names`, as 32 numbers from 0 to 255, so that the mean of equal ones equals them."""
    exchanged = set(names)
    digest = sha256_of({key: value for key, value in state.items() if key not in exchanged})
    return torch.tensor(list(bytes.fromhex(digest)), dtype=torch.float32)


class AdapterOnly(Filter):
    """Reduce what a site sends to a copy of the adapter, and the fingerprint of all other weights.

    The set of parameters of `net` that train must not change afterwards.
    """

    def __init__(self, net: Segmenter) -> None:
        self.names = adapter_names(net)

    def __call__(self, data: ExchangeObject, extra: dict | None = None) -> ExchangeObject:
        """Replace `data.weights`; raise an `InputError` if they are those of a network with other settings."""
        state = data.weights or {}
        if missing := [name for name in self.names if name not in state]:
            raise InputError(f"the model to send has no {missing[0]}; it was trained with other settings, remove it")
        adapter = {name: state[name].detach().cpu().clone() for name in self.names}  # training goes on in the original
        data.weights = adapter | {FROZEN: fingerprint(state, self.names)}
        return data


class SameAdapter(Filter):
    """Accept only the weights that `AdapterOnly` sends, with the fingerprint of this site's other weights.

    The set of parameters of `net` that train must not change afterwards.
    """

    def __init__(self, net: Segmenter) -> None:
        state = net.state_dict()
        names = adapter_names(net)
        self.fingerprint = fingerprint(state, names)
        self.shapes = {name: tuple(state[name].shape) for name in names} | {FROZEN: (32,)}

    def __call__(self, data: ExchangeObject, extra: dict | None = None) -> ExchangeObject:
        """Return the adapter in `data`, whose weights are tensors or NumPy arrays by name.

        Raises:
            InputError: a weight is missing, unexpected or of another shape; differences instead of weights; the
                frozen weights of the sites differ.
        """
        if data.weight_type == WeightType.WEIGHT_DIFF:
            raise InputError("received differences of weights, expected the weights; let the server send the model")
        got = data.weights or {}
        for verb, names, others in (("lacks", self.shapes, got), ("also has", got, self.shapes)):
            if different := [name for name in names if name not in others]:
                raise InputError(
                    f"the received model {verb} {len(different)} weights ({', '.join(different[:3])}, ...), expected "
                    f"the {len(self.shapes)} that this site sends; give all sites the same settings"
                )
        for name, shape in self.shapes.items():
            if (found := tuple(got[name].shape)) != shape:
                expected = f"expected {list(shape)}; give all sites the same settings"
                raise InputError(f"the received {name} is {list(found)}, {expected}")
        weights = {name: torch.as_tensor(value) for name, value in got.items()}
        # the mean of equal whole numbers in float32 differs from them by far less than 0.01
        if not torch.allclose(weights.pop(FROZEN).cpu().float(), self.fingerprint, rtol=0.0, atol=0.01):
            raise InputError(
                "the received model has other frozen weights than this site, or those of the sites differ; give all "
                "sites the same SAM checkpoint, the same expert files and the same seed"
            )
        return ExchangeObject(weights, weight_type=WeightType.WEIGHTS, statistics=data.statistics)


class AdapterAlgo(MonaiAlgo):
    """One site. The best model that it evaluates becomes `models/model.pt` of its bundle, as in any training.

    Args:
        bundle_root: folder of the site's own copy of the bundle.
        rounds: number of exchanges of adapters; the learning rate falls over all rounds.
        local_epochs: epochs of a round on the scans of this site.
        settings: the settings of `configs/train.yaml`, as on the command line, with `dataset_dir`.
    """

    def __init__(self, bundle_root: str, rounds: int, local_epochs: int = 1, **settings: Any) -> None:
        # a difference of weights takes as many bytes, and the first model could not come from a site
        super().__init__(
            bundle_root, local_epochs, send_weight_diff=False, config_train_filename=None, config_evaluate_filename=None
        )
        self.epochs = rounds * local_epochs
        self.settings = settings

    def initialize(self, extra: dict | None = None) -> None:
        """Build the training of the bundle.

        Args:
            extra: `ExtraItems.CLIENT_NAME`, and `ExtraItems.APP_ROOT`, the folder that `bundle_root` is relative to.

        Raises:
            InputError: a setting is not in the config.
            RuntimeError: from MONAI, caused by any other error that stops a training.
        """
        extra = extra or {}
        self.client_name = extra.get(ExtraItems.CLIENT_NAME, "noname")
        self.bundle_root = os.path.join(extra.get(ExtraItems.APP_ROOT, ""), self.bundle_root)
        file = os.path.join(self.bundle_root, "configs", "train.yaml")
        config = ConfigParser(ConfigParser.load_config_file(file))
        if unknown := [name for name in self.settings if name not in config]:
            raise InputError(f"unknown setting {unknown[0]!r}; expected one of those at the top of {file}")
        if averaging := [name for name in ("ema", "unlabeled") if self.settings.get(name)]:
            raise InputError(
                f"{averaging[0]} was given, but a federation exchanges the weights of the last step, not a site's "
                "average of them; leave it out"
            )
        fixed: dict[str, Any] = {"bundle_root": self.bundle_root, "epochs": self.epochs}
        workflow = ConfigWorkflow(file, logging_file=False, workflow_type="train", **fixed, **self.settings)
        for handler in workflow.parser["train"]["handlers"]:
            if "validator" in handler:
                handler["validator"] = None  # `evaluate` validates, and only the exchanged model
        workflow.initialize()
        self.train_workflow = workflow  # type: ignore[assignment]
        self.trainer, self.evaluator = workflow.trainer, workflow.evaluator
        self.last_checkpoint = workflow.parser.get_parsed_content("last_checkpoint")
        self.pre_filters = [SameAdapter(workflow.network_def)]  # type: ignore[assignment]
        self.post_weight_filters = [AdapterOnly(workflow.network_def)]  # type: ignore[assignment]

    def train(self, data: ExchangeObject, extra: dict | None = None) -> None:
        """Train the model `data` for one round.

        Raises:
            InputError: all rounds are complete; `SameAdapter` refuses `data`; any error that stops a training.
        """
        assert self.trainer is not None, "initialize() comes first"
        if self.trainer.state.epoch >= self.epochs:  # the learning rate would be 0
            raise InputError(
                f"this site has trained all its {self.epochs // self.local_epochs} rounds; "
                "start it with more rounds, and with resume to continue"
            )
        # a site that was stopped within a round trains the rest of it, so that the rounds of all sites stay equal
        whole = self.local_epochs
        self.local_epochs -= self.trainer.state.epoch % whole
        try:
            super().train(data, extra)
        finally:
            self.local_epochs = whole

    def evaluate(self, data: ExchangeObject, extra: dict | None = None) -> ExchangeObject:
        """Evaluate the model `data`. Raises the errors of `SameAdapter`, and any that stops an evaluation."""
        assert self.trainer is not None, "initialize() comes first"
        metrics = super().evaluate(data, extra)
        if self.trainer.state.epoch:
            self.last_checkpoint.save()  # with the best Dice so far, in case the site is stopped now
        return metrics


def average(updates: Sequence[ExchangeObject]) -> ExchangeObject:
    """FedAvg: the mean of the adapters of the sites, weighted by the steps that each trained in this round.

    Raises:
        InputError: the adapters do not hold the same weights.
    """
    steps = [float((update.statistics or {})[FlStatistics.NUM_EXECUTED_ITERATIONS]) for update in updates]
    adapters = [update.weights or {} for update in updates]
    for adapter in adapters:
        if different := adapter.keys() ^ adapters[0].keys():
            raise InputError(f"not every site sent {min(different)}; give all sites the same settings")
    weights = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in adapters[0].items()}
    for adapter, n in zip(adapters, steps, strict=True):
        for name, value in adapter.items():
            weights[name] += n / sum(steps) * value
    return ExchangeObject({name: value.float() for name, value in weights.items()}, weight_type=WeightType.WEIGHTS)
