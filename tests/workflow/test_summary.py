"""The start-up summary and its memory estimate."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from samora_monai.checkpoints.model_settings import ModelSettings
from samora_monai.networks import build_segmenter
from samora_monai.workflow.summary import count_parameters, print_summary, training_bytes


def network():
    net = torch.nn.Sequential(torch.nn.Linear(100, 40), torch.nn.Linear(40, 5))
    net[0].requires_grad_(False)
    return net


class Slices:
    """Stands for a SliceDataset."""

    num_slices_total = 80
    nbytes = 2_500_000_000

    def __len__(self):
        return 8


def test_summary(caplog):
    caplog.set_level("INFO", "samora_monai")
    net = network()
    slices: Any = Slices()
    net.describe = lambda: "SAMora, vit_b"
    cases: Any = SimpleNamespace(training=[1] * 4, source="/data/dataset.json")
    model = ModelSettings.from_dict({"class_names": ["background", "liver"], "image_size": 64})
    print_summary(
        network=net,
        device=torch.device("cpu"),
        cases=cases,
        model=model,
        batch_size=2,
        amp=False,
        dataset=slices,
        validation=[1],
    )
    lines = dict(line.split(maxsplit=1) for line in caplog.messages)
    assert lines["device"].startswith("cpu (")
    assert lines["versions"].startswith("samora_monai 0.")
    assert lines["data"] == "/data/dataset.json"
    assert lines["scans"] == "4 training (8 of 80 slices), 1 validation"
    assert lines["classes"] == "0 background, 1 liver"
    assert lines["network"] == "SAMora, vit_b"
    assert lines["parameters"] == "205 of 4,245 train (4.8%)"
    assert lines["memory"].endswith("; 2.5 GB of RAM for the slices")


def test_quiet_on_other_ranks(caplog, monkeypatch):
    caplog.set_level("INFO", "samora_monai")
    nothing: Any = None
    monkeypatch.setattr("ignite.distributed.get_rank", lambda: 1)
    print_summary(network(), torch.device("cpu"), nothing, nothing, 1, False, nothing, [])
    assert caplog.messages == []


def test_bytes_by_hand():
    """205 trainable of 4245 values; 2 slices of 4 x 4 tokens; matrices with 40 and 5 outputs."""
    assert count_parameters(network()) == (205, 4245)
    want = {"weights": 4 * 4245, "training": 12 * 205, "activations": 1.5 * 32 * 45 * 4}
    assert training_bytes(network(), 2, 64, False) == want
    assert training_bytes(network(), 2, 64, True)["activations"] == want["activations"] / 2
    assert training_bytes(network().requires_grad_(False), 2, 64, False)["activations"] == 0


def kept_by_autograd(net: torch.nn.Module, x: torch.Tensor) -> int:
    """Bytes that autograd keeps for the backward pass, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # holding the tensor keeps its address taken
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        assert net(x).requires_grad
    return sum(size for size, _ in kept.values())


def test_activations_are_of_the_right_size():
    """Against what autograd keeps for a plain transformer on 2 x 196 tokens."""
    layer = torch.nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, activation="gelu", batch_first=True)
    net = torch.nn.TransformerEncoder(layer, 4)
    real = kept_by_autograd(net, torch.rand(2, 196, 64))
    assert training_bytes(net, 2, 224, False)["activations"] == pytest.approx(real, rel=0.5)


@pytest.mark.parametrize("encoder", ["tiny", "sam2_mini"])
def test_activations_of_both_families_are_of_the_right_size(encoder: str):
    """SAM 2's tokens are of 4 to 32 pixels."""
    net = build_segmenter(encoder, 128).train()
    real = kept_by_autograd(net, torch.rand(2, 1, 128, 128))
    assert 0.6 < real / training_bytes(net, 2, 128, False)["activations"] < 1.3
