"""What leaves a site of a federation, what it takes, and the mean of what the sites send."""

from __future__ import annotations

import pickle
import re
from typing import Any

import pytest
import torch
from monai.fl.utils.constants import FlStatistics, WeightType
from monai.fl.utils.exchange_object import ExchangeObject

from samora_monai.federated import FROZEN, AdapterOnly, SameAdapter, adapter_names, average
from samora_monai.networks import LEVELS, Segmenter, build_segmenter
from tests.bundles.command_line import BUNDLE
from tests.tiny import randomise, refused, untouched

SYSTEMS: dict[str, dict[str, Any]] = {
    "samed": {},
    "samora": {"experts": LEVELS, "fusion": "attention"},
    "hsamora": {"experts": LEVELS, "fusion": "block", "decoder": "hierarchical"},
    "samora on SAM 2": {"encoder": "sam2_mini", "experts": LEVELS, "fusion": "attention", "fusion_width": 64},
}
# what a SAM checkpoint or an expert file holds
STAYS = re.compile(
    r"pixel_|image_encoder\.(?!.*(\.experts\.task\.|\.hl_attn\.))|(sam_)?prompt_encoder\.(?!no_mask_embed)"
    r"|.*(iou_pred|pred_obj_score)|no_mem_embed"
)


def network(system: str) -> Segmenter:
    net = build_segmenter(**{"encoder": "tiny", "image_size": 64, "num_classes": 3} | SYSTEMS[system])
    randomise(net)
    return net


def sent(net: Segmenter) -> ExchangeObject:
    return AdapterOnly(net)(ExchangeObject(dict(net.state_dict()), weight_type=WeightType.WEIGHTS))


# ---- what leaves a site, and what it takes


@pytest.mark.parametrize("system", SYSTEMS)
def test_only_the_adapter_leaves(system: str):
    net = network(system)
    message = sent(net)
    assert set(message.weights) == {FROZEN} | {key for key in net.state_dict() if not STAYS.match(key)}
    size = sum(4 * parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
    assert sum(value.numpy().nbytes for value in message.weights.values()) == size + 4 * 32
    payload = pickle.dumps(message)
    assert size < len(payload) < 1.01 * size
    state = net.state_dict()
    own = [key for key in state if re.match(r"image_encoder\.(trunk\.)?(pos_embed|patch_embed|blocks\.0\.)", key)]
    stays = {key for key in own if STAYS.match(key) and state[key].ndim > 1}
    assert len(stays) > 5
    for key in {*stays, f"{net.prefix}mask_decoder.mask_tokens.weight"}:
        assert (state[key].numpy().tobytes()[:64] in payload) == (key not in stays)


def test_sent_weights_are_a_snapshot():
    net = network("samed")
    message = sent(net)
    with torch.no_grad():
        net.mask_decoder.iou_token.weight.add_(1)
    difference = net.mask_decoder.iou_token.weight - message.weights["mask_decoder.iou_token.weight"]
    assert difference.min() > 0.99


def test_the_base_never_travels():
    with refused("the base encoder", "'adapters'"):
        adapter_names(build_segmenter("tiny", 64, train="all"))


def test_other_models_are_refused():
    net = network("samora")
    take = SameAdapter(net)
    weights = sent(net).weights
    key = "mask_decoder.iou_token.weight"
    base = "image_encoder.patch_embed.proj.weight"
    spoiled = {
        f"lacks 1 weights ({key}, ...)": {name: value for name, value in weights.items() if name != key},
        f"also has 1 weights ({base}, ...)": weights | {base: net.state_dict()[base]},
        f"{key} is [256, 1], expected [1, 256]": weights | {key: weights[key].T},
        "other frozen weights": weights | {FROZEN: weights[FROZEN] + torch.eye(32)[0]},
        f"lacks {len(weights)} weights": {},
    }
    for words, given in spoiled.items():
        with untouched(net), refused(words, "give all sites the same"):
            take(ExchangeObject(given))
    with refused("differences"):
        take(ExchangeObject(weights, weight_type=WeightType.WEIGHT_DIFF))


def test_numpy_from_a_server_is_taken():
    net = network("samed")
    message = sent(net)
    arrays = ExchangeObject({key: value.numpy() for key, value in message.weights.items()})
    taken = SameAdapter(net)(arrays).weights
    assert set(taken) == set(adapter_names(net)) == set(arrays.weights) - {FROZEN}
    assert all(torch.equal(taken[key], message.weights[key]) for key in taken)


def test_mean_is_in_proportion_to_the_steps():
    steps = {1: 1.0, 3: 5.0}  # to the value of the one weight
    updates = [
        ExchangeObject({"w": torch.full((2,), v)}, statistics={FlStatistics.NUM_EXECUTED_ITERATIONS: n})
        for n, v in steps.items()
    ]
    assert average(updates).weights["w"].tolist() == [4.0, 4.0]
    updates[1].weights["v"] = torch.zeros(1)
    with refused("not every site sent v"):
        average(updates)


@pytest.mark.parametrize("share", [0.5, 0.01])
def test_sites_on_other_experts_are_found_by_the_mean(share: float):
    """Whatever server averages: the mean of two different hashes is neither of them."""
    nets = network("samora"), network("samora")
    assert torch.equal(sent(nets[0]).weights[FROZEN], sent(nets[1]).weights[FROZEN])
    with torch.no_grad():
        nets[1].image_encoder.blocks[1].attn.experts["patch"].linear_a_q.weight[0, 0] += 1e-3
    ours, theirs = (sent(net).weights for net in nets)
    mean = {key: (1 - share) * ours[key] + share * theirs[key] for key in ours}
    for net in nets:
        with untouched(net), refused("other frozen weights", "expert files"):
            SameAdapter(net)(ExchangeObject(mean))


# ---- what the documentation says


@pytest.mark.parametrize(
    "system, settings",
    {
        "SAMed": {},
        "SAMora, HL-Attn of the encoder's width": {"experts": LEVELS, "fusion": "attention"},
        "SAMora, `fusion_width=192`": {"experts": LEVELS, "fusion": "attention", "fusion_width": 192},
        "H-SAM": {"decoder": "hierarchical"},
        "H-SAMora, HL-Attn of the encoder's width": SYSTEMS["hsamora"],
    }.items(),
)
def test_bytes_are_those_of_the_table(system: str, settings: dict[str, Any]):
    with torch.device("meta"):
        net = build_segmenter("vit_b", num_classes=9, **settings)
    adapter = sum(4 * parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
    whole = sum(4 * parameter.numel() for parameter in net.parameters())
    cells = [f"{count:,}".replace(",", " ") for count in (adapter, whole)]
    assert f"| {system} | {cells[0]} | {cells[1]} |" in (BUNDLE / "docs" / "federated.md").read_text()
